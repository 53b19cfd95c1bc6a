# The CUDA half of libdhp_kernels.
#
# Machine code for sm_80 (which compute capabilities 8.6, 8.7 and 8.9 run too) and sm_90a, and no PTX: the driver would
# compile PTX into code that nobody has proved.

set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real)
set(cuda_architectures "sm_80 sm_90a")
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13 OR CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 14)
  message(FATAL_ERROR "dhp_jax: ${CMAKE_CUDA_COMPILER} is CUDA ${CMAKE_CUDA_COMPILER_VERSION}; CUDA 13 is needed. "
                      "Set CUDACXX to its nvcc, or take CUDA off the PATH and let pip bring it (BUILD.md).")
endif()

target_sources(dhp_kernels PRIVATE cuda/launch/launch.cu)
set_target_properties(dhp_kernels PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static)

# A spill is secret data in local memory, and slow: it fails the build, like any warning of ptxas.
set(cuda_flags -O3 -ftz=true -lineinfo "-Xptxas=-warn-spills,-warn-lmem-usage")
if(DHP_WERROR)
  list(APPEND cuda_flags "-Werror=all-warnings" "-Xptxas=-Werror" "-Xcompiler=-Wall,-Wextra")
endif()
target_compile_options(dhp_kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags}>)
