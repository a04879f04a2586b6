/* A libcuda that has no GPU: Triton's own launcher runs against it, and what it would start is counted and
 * noted down. So the path from an op to cuLaunchKernelEx can be tested and timed where there is no GPU.
 *
 * Built by oracles.fake_gpu. The parameters of a launch are read where the kernel's would be: the sizes are
 * told beforehand by `note_sizes`, as cuLaunchKernelEx does not get them.
 */

#include <stdint.h>
#include <string.h>

#include "cuda.h"

#define MAX_PARAMS 64
#define MAX_NOTED 64

typedef struct {
  uint64_t function, stream;
  uint32_t grid[3], block, shared;
  uint64_t params[MAX_PARAMS];
} Launch;

static Launch noted[MAX_NOTED];
static uint64_t num_launches, next_function = 1000;
static int sizes[MAX_PARAMS], num_sizes, captures;

void note_sizes(const int *bytes, int count) {
  memcpy(sizes, bytes, sizeof(int) * count);
  num_sizes = count;
}
void start_noting(int on) { captures = on; num_launches = 0; }
uint64_t count_launches(void) { return num_launches; }
const Launch *launch_at(int i) { return &noted[i % MAX_NOTED]; }

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *context) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 1 << 20; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 32;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char **text) { *text = "an error of the fake libcuda"; return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule *module, const void *image) { *module = (CUmodule)(next_function); return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)(next_function++);
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) { *n = 1; return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)data = pointer;
  return CUDA_SUCCESS;
}
/* An H100's numbers. */
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 227 << 10; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 48 << 10; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 228 << 10; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
  default: *value = 1024;
  }
  return CUDA_SUCCESS;
}
/* A tensor map's 8 first bytes, all that is noted of it, tell maps apart. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  uint64_t mixed = (uint64_t)address * 31 + type * 7 + swizzle;
  for (cuuint32_t i = 0; i < rank; ++i)
    mixed = mixed * 1099511628211u + dims[i] + (i + 1 < rank ? strides[i] * 3 : 0) + box[i] * 5;
  memset(map, 0, sizeof *map);
  memcpy(map, &mixed, sizeof mixed);
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
  if (captures) {
    Launch *launch = &noted[num_launches % MAX_NOTED];
    memset(launch, 0, sizeof(Launch));
    launch->function = (uint64_t)function;
    launch->stream = (uint64_t)config->hStream;
    launch->grid[0] = config->gridDimX;
    launch->grid[1] = config->gridDimY;
    launch->grid[2] = config->gridDimZ;
    launch->block = config->blockDimX;
    launch->shared = config->sharedMemBytes;
    for (int i = 0; i < num_sizes; ++i)
      memcpy(&launch->params[i], params[i], sizes[i]);
  }
  ++num_launches;
  return CUDA_SUCCESS;
}
