"""A GPU that is pretended: tensors with real numbers that say they are on `cuda:0`, for tests on machines without one.

`Pretend` (tensors.py) is a tensor subclass over ordinary CPU memory whose `device` and `is_cuda` are a GPU's. Every
operation on one passes `run` (operations.py), which

  * refuses what CUDA refuses: tensors of two devices in one operation (but for 0-dimensional CPU numbers in elementwise
    ones, CPU indices, and copies), CPU generators for CUDA tensors, .numpy(), CPU tensors in an NCCL collective;
  * notes where the host waits for the device (`.item()`, nonzero, boolean indices, copies between pageable host memory
    and the device, CPU index tensors) with the first line of the product in the stack (log.py);
  * counts operations that launch kernels. An operation of PyTorch counts as one, though a sort takes several kernels;
    the Triton kernels of the product are counted one by one;
  * keeps vector clocks of simulated streams (streams.py): it finds a read that nothing orders behind its write, and
    memory that goes back to the allocator while another stream may use it, and knows the peak of live bytes by the
    stream that allocated them, below which the caching allocator cannot stay, for it keeps freed blocks by stream.

`pretend_gpu` (cuda.py) also replaces what is asked of torch.cuda, and `nccl` (nccl.py) the collectives that comm/
calls, with futures whose callbacks run at once on the next of 32 pool streams, as c10 has it (ATen/core/ivalue_inl.h,
Future::invokeCallback; c10/cuda/CUDAStream.cpp, kStreamsPerPool).

What it cannot see: CUDA's own kernels (bits, limits of size, missing dtypes, speed), cuDNN, NCCL itself, Triton's code
generation, other threads than the one that calls, and what C++ does below the dispatcher (DDP's reducer: ddp.py).
"""
