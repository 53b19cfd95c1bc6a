// Clocks: a kernel that reads one can tell others what it saw, or act on it. None that ships does.

// Counts its own cycles.
//
// sass: CS2R R\d+, SR_CLOCKLO
__global__ void X01_cycle_counter(float* rows, long long* out) {
  const long long start = clock64();  // expect: CT07
  rows[threadIdx.x] *= 2.0f;
  __syncthreads();
  out[threadIdx.x] = clock64() - start;  // expect: CT07
}

// Reads the low half of the cycle counter.
//
// sass: CS2R.32 R\d+, SR_CLOCKLO
__global__ void X01_cycle_counter_32(int* out) {
  out[threadIdx.x] = clock();  // expect: CT07
}

// Reads the time of day.
//
// sass: CS2R R\d+, SR_GLOBALTIMERLO
__global__ void X01_global_timer(unsigned long long* out) {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));  // expect: CT07
  out[threadIdx.x] = now;
}
