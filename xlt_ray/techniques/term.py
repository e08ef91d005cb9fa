"""A loss beside the task's: what it is given of a batch, and on which rows it is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from xlt_ray.corpora.streams import LABELLED, UNLABELLED, Stream
from xlt_ray.model.network import Network

# What a network and its losses see of rows, by name. The encoder's inputs are (rows, tokens) int64: `input_ids`,
# `attention_mask` and, of some encoders, `token_type_ids`. Of every row, (rows,), there are `language` (int64, its
# place in `Network.languages`, -1 unknown), and in training besides
#
#   label     int64, 0 where there is none
#   weight    float32, of its label: 1 on average over the mixture; 0 where there is none
#   stream    int64: 0 LABELLED, 1 UNLABELLED, then those of terms; -1 of a row that only keeps workers in step
#   row       int64, its place in the table of its language; -1 of a labelled row
#
# Where the task asks of words there are, (rows, words) int64, `word`: 1 and the place of the token that is scored for a
# word, 0 for none; and `tag`: its gold label. A step of other rows alone has neither. Labels of rows are 0 then.
#
# And, one for all, `counts`, (streams,) float32: rows of the whole update in each stream; `progress`, a number 0 to 1.
Batch = Mapping[str, torch.Tensor]


class Outputs(NamedTuple):
    """What a network computes of a batch."""

    hidden: torch.Tensor  # (rows, tokens, width) float32, of the encoder's last layer
    pooled: torch.Tensor  # (rows, width)
    features: torch.Tensor  # (rows, width), after the steps of techniques
    logits: torch.Tensor  # (rows, classes), or (words, classes), words row by row


class Term(nn.Module):
    """A loss beside the task's, which a technique returns from `loss_term`.

    `streams` are those whose rows it is computed on, of LABELLED and UNLABELLED. One that needs other rows has a
    `stream` of its own instead, which joins every update under its technique's name.
    """

    streams: tuple[str, ...] = (LABELLED, UNLABELLED)
    stream: Stream | None = None

    def forward(self, network: Network, batch: Batch, outputs: Outputs, mine: torch.Tensor) -> torch.Tensor:
        """Return a finite number for every row, (rows,); only those of `mine`, (rows,) bool, its streams', count.

        The mean over the rows of its streams in an update is added to the mean of the task's loss.
        """
        raise NotImplementedError


def own_streams(network: Network) -> dict[str, Stream]:
    """Return the streams that terms of a network have, by name; a batch numbers them from 2 on, in this order."""
    found = {name: getattr(term, "stream", None) for name, term in network.terms.items()}
    return {name: stream for name, stream in found.items() if stream is not None}
