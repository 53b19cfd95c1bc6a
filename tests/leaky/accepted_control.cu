// Not leaks: control flow and addresses of public shapes, and secrets moved as data.

#include <cmath>

// Skips the key tiles that causality hides from all queries of this block, and masks the diagonal one: by
// positions.
//
// expect: SAFE
// sass: @!P\d BRA P\d
// sass: FSEL
__global__ void B06_causal_tile_skip(const float* keys, int num_tiles, float* out) {
  const int t = 32 * blockIdx.x + threadIdx.x;
  float sum = 0.0f;
#pragma unroll 1
  for (int tile = 0; tile < num_tiles; ++tile) {
    if (tile > static_cast<int>(blockIdx.x)) break;
    const int s = 32 * tile + (threadIdx.x ^ 1);
    const float key = keys[s];
    sum += s <= t ? key : 0.0f;
  }
  out[t] = sum;
}

// The same with a window on both sides.
//
// expect: SAFE
// sass: @!P\d BRA
__global__ void B06_window_tile_skip(const float* keys, int left, int right, int length, float* out) {
  const int t = blockIdx.x;
  const int end = min(t + right + 1, length);
  float sum = 0.0f;
#pragma unroll 1
  for (int s = max(t - left, 0); s < end; ++s) sum += keys[s];
  out[t] = sum;
}

// Loops to the padded length; the true length only chooses values.
//
// expect: SAFE
// sass: @!P\d BRA
// sass: FSEL
__global__ void B07_loop_to_padded_length(const float* keys, const int* lengths, int padded_length,
                                          float* out) {
  const int length = lengths[0];
  float sum = 0.0f;
#pragma unroll 1
  for (int s = 0; s < padded_length; ++s) {
    const float key = keys[s];
    sum += s < length ? key : 0.0f;
  }
  out[threadIdx.x] = sum;
}

// Takes one tile after the other from a public count.
//
// expect: SAFE
// sass: MUFU.RCP
// sass: @!P\d BRA
__global__ void B08_persistent_tiles(const float* rows, int num_tiles, int tiles_a_row, int pitch,
                                     float* out) {
  for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int row = tile / tiles_a_row, column = tile % tiles_a_row;
    const int place = row * pitch + column * blockDim.x + threadIdx.x;
    out[place] = 2.0f * rows[place];
    __syncthreads();
  }
}

// Warps take roles by their number: one loads, the others compute. Each role has named barriers of its own.
//
// expect: SAFE
// sass: BAR.ARV
// sass: @!P\d BRA
__global__ void B12_roles_of_warps(const float* rows, int num_rows, float* out) {
  __shared__ float sRow[96];
  const int warp = threadIdx.x / 32;
#pragma unroll 1
  for (int row = 0; row < num_rows; ++row) {
    if (warp == 0) {
#pragma unroll 1
      for (int i = threadIdx.x; i < 96; i += 32) sRow[i] = rows[96 * row + i];
      asm volatile("bar.arrive 1, 128;" ::: "memory");
      asm volatile("bar.sync 2, 128;" ::: "memory");
    } else {
      asm volatile("bar.sync 1, 128;" ::: "memory");
      out[96 * row + threadIdx.x - 32] = sRow[threadIdx.x - 32] * sRow[0];
      asm volatile("bar.arrive 2, 128;" ::: "memory");
    }
  }
}

// Secrets through shared memory, at places that the thread's number gives.
//
// expect: SAFE
// sass: STS
// sass: LDS
__global__ void B14_shared_memory(const float* rows, float* out) {
  __shared__ float sRows[1024];
  sRows[threadIdx.x] = rows[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = sRows[(threadIdx.x * 33) & 1023] * sRows[threadIdx.x ^ 1];
}

// The same by the instructions that load and multiply matrices.
//
// expect: SAFE
// sass: LDSM.16.M88.4
// sass: HMMA
__global__ void B14_matrix_loads(const uint4* rows, uint4* out) {
  __shared__ uint4 sRows[32];
  sRows[threadIdx.x] = rows[threadIdx.x];
  __syncthreads();
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(&sRows[threadIdx.x]));
  uint4 a;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w)
               : "r"(place)
               : "memory");
  float d[4] = {};
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%4, %7}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w));
  out[threadIdx.x] = {__float_as_uint(d[0]), __float_as_uint(d[1]), __float_as_uint(d[2]),
                      __float_as_uint(d[3])};
}

// Stores secrets where the row exists, by the number of the thread.
//
// expect: SAFE
// sass: @P\d EXIT
__global__ void B16_store_inside_bounds(const float* rows, int num_rows, float* out) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= num_rows) return;
  out[row] = 0.5f * rows[row];
}

// Finds a row by a page table, which the policy calls public.
//
// policy: public buffer 1
// expect: SAFE
// sass: LDG
__global__ void B17_rows_by_page_table(const float* pool, const int* pages, float* out) {
  const int page = pages[blockIdx.x];
  out[threadIdx.x] = pool[page * 64 + threadIdx.x];
}

// Adds a slope for each head and turns by tables, both read at public places; reads lengths, mask and
// segments whole.
//
// expect: SAFE
// sass: LDG.E.U8
// sass: FSEL
__global__ void B17_tables_and_masks_at_public_places(const float* scores, const float* slopes,
                                                      const float2* turns, const unsigned char* mask,
                                                      const int* segments, const int* lengths, float* out) {
  const int t = blockIdx.x, s = threadIdx.x;
  const float2 turn = turns[t * blockDim.x + s];
  const float score = scores[s] * turn.x + turn.y + slopes[blockIdx.y] * static_cast<float>(t - s);
  const bool takes_part = mask[s] != 0 & segments[s] == segments[t] & s < lengths[blockIdx.y];
  out[s] = takes_part ? score : -INFINITY;
}
