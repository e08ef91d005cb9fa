"""Sum gradients over workers in fewer bits. Annotations are objects here, since torch refuses a hook with others."""

import torch
from torch import distributed


def in_bfloat16(group: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of gradients over workers as bfloat16, a hook for DDP's `register_comm_hook`.

    As torch's own of that purpose, which works on GPUs alone. Each of the sums on the way is rounded to 8 bits.
    """
    buffer = bucket.buffer()
    sent = (buffer / distributed.get_world_size()).to(torch.bfloat16)

    def received(done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        return buffer.copy_(done.value()[0])

    return distributed.all_reduce(sent, async_op=True).get_future().then(received)
