"""The training loop: torch only, no Ray. The same updates come from 1, 2 or 4 workers, and from a resumed run."""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from xlt_ray.config.sections import TrainingConfig
from xlt_ray.corpora.mixture import Draws
from xlt_ray.corpora.streams import LABELLED, UNLABELLED
from xlt_ray.evaluation import evaluate
from xlt_ray.events import counting
from xlt_ray.model import cpu
from xlt_ray.model.network import Network, Weights, restore_weights, trained
from xlt_ray.model.precision import BROKEN, autocast, choose_precision
from xlt_ray.tasks.task import Task
from xlt_ray.techniques.term import Batch, Outputs, Term, own_streams
from xlt_ray.training import checkpoint
from xlt_ray.training.batches import Feed
from xlt_ray.training.checkpoint import Progress
from xlt_ray.training.setup import Run, calibrate
from xlt_ray.training.workers.sharing import collected, in_bfloat16, settle

REPORTS = 50  # losses reported over a run


def fit(run: Run, restored: Path | None = None) -> Progress:
    """Fine-tune `run.network` for the configured epochs, resuming from the checkpoint in folder `restored`, if any.

    The network is left with the weights to deploy: the last, the average of the last epochs, or the best on dev.
    """
    state = begin(run, restored)
    state.advance(run.experiment.training.epochs)
    state.finish()
    state.calibrate()
    return state.progress


def begin(run: Run, restored: Path | None = None) -> TrainingState:
    """Set up precision, loss, optimiser and DDP for a run, at its start or where the checkpoint `restored` left it."""
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    asked, longest = run.experiment.training.precision, run.experiment.network.max_length
    saved = None if restored is None else checkpoint.load(restored)
    if saved is None:
        chosen = choose_precision(asked, run.network, longest, lambda note: run.emit({"note": note}))
        progress = Progress(precision=chosen)
    else:  # measured anew it might be another one
        progress = saved["progress"]
        run.emit({"note": f"going on from update {progress.step} with {world} workers"})
    _add_terms(run, progress.precision)
    head_alone = not run.experiment.training.labelled or any(one.holds_encoder for one in run.setup.techniques)
    forward: nn.Module = Objective(run.network, run.setup.task, run.experiment.training.label_smoothing, head_alone)
    sharded = world > 1 and run.experiment.resources.shard_optimizer
    optimizer = _optimizer(run.network, run.experiment.training, sharded)
    average: Weights = {}
    best: Weights = {}
    if saved is not None:
        average, best = checkpoint.restore(saved, run.network, optimizer)
        if sharded:
            settle(optimizer)
    if world > 1:
        forward = DistributedDataParallel(forward, forward_sync_buffers=False, gradient_as_bucket_view=True)
        if run.experiment.training.all_reduce == "bfloat16":
            forward.register_comm_hook(None, in_bfloat16)
    return TrainingState(run, forward, optimizer, progress, average, best, sharded)


def _add_terms(run: Run, precision: str) -> None:
    """Put the loss terms of techniques into the network, so that they are trained and saved with it."""
    network = run.network
    device = next(network.parameters()).device
    network.terms.clear()  # of an earlier run of the same network
    for one in run.setup.techniques:
        on_progress = counting(run.emit, "prepare")
        term = one.loss_term(network, run.setup.material, run.computing(precision), on_progress)
        if term is not None:
            network.terms[one.name] = term.to(device)


class Objective(nn.Module):
    """Sum the losses of a batch's rows: the task's by `weight`, and terms of techniques, each as much as the task.

    With `head_alone` the task trains the head and whatever stands behind the pooled features, and the encoder learns
    from the terms alone.
    """

    def __init__(self, network: Network, task: Task, label_smoothing: float = 0.0, head_alone: bool = False) -> None:
        super().__init__()
        self.network, self.task = network, task
        self.label_smoothing, self.head_alone = label_smoothing, head_alone

    def forward(self, batch: Batch) -> torch.Tensor:
        """Map a batch to a scalar: the sum over its rows, of which the sum over an update is divided by its draws."""
        network, language = self.network, batch.get("language")
        hidden = network.encode(batch)
        pooled = network.pool(hidden, batch)
        features = network.transform(pooled, language)
        if self.head_alone:
            logits = network.answers(hidden.detach(), network.transform(pooled.detach(), language), batch)
        else:
            logits = network.answers(hidden, features, batch)
        outputs = Outputs(hidden, pooled, features, logits)
        losses = self.task.loss(logits, batch, self.label_smoothing)
        total = (losses * batch["weight"]).sum()
        if self.head_alone:  # DDP wants a gradient of every parameter, also where no row is a term's
            total = total + 0.0 * features.sum()
        for name, term in network.terms.items():
            mine, factor = self._share(name, batch)
            total = total + (term(network, batch, outputs, mine) * (mine * factor)).sum()
        return total

    def _share(self, name: str, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which rows are a term's, (rows,), and their factor: in an update of as many as are labelled, or 1."""
        names, term = (LABELLED, UNLABELLED, *own_streams(self.network)), self.network.terms[name]
        asked = (name,) if name in names else getattr(term, "streams", Term.streams)
        places = torch.tensor([names.index(one) for one in asked], device=batch["stream"].device)
        factor = batch["counts"][0].clamp(min=1) / batch["counts"][places].sum().clamp(min=1)
        return torch.isin(batch["stream"], places), factor


def rate(training: TrainingConfig, step: int, total: int) -> float:
    """Return the factor on the learning rate at update `step` of `total`: linear warm-up from near 0 to 1, then decay.

    >>> [round(rate(TrainingConfig(warmup=0.2), step, 10), 2) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.12]
    """
    warm = math.ceil(training.warmup * total)
    if step < warm:
        return (step + 1) / warm
    left = (total - step) / max(total - warm, 1)
    shapes = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}
    return shapes[training.decay]


def _optimizer(network: Network, training: TrainingConfig, sharded: bool = False) -> torch.optim.Optimizer:
    """Return AdamW for what is trained; sharded, each worker updates a part of it and sends the others the result.

    That is stage 1 of ZeRO (Rajbhandari et al. 2020, section 5): the state, two numbers a weight, is in one place.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decay = training.weight_decay if parameter.ndim > 1 else 0.0  # biases and norms are not decayed
            peak = training.head_learning_rate if name.startswith("head.") else None
            groups.setdefault((peak or training.learning_rate, decay), []).append(parameter)
    settings = [{"params": ps, "lr": peak, "peak": peak, "weight_decay": decay} for (peak, decay), ps in groups.items()]
    if sharded:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # takes two seconds

        return ZeroRedundancyOptimizer(settings, torch.optim.AdamW, fused=True, parameters_as_bucket_view=True)
    return torch.optim.AdamW(settings, fused=True)


@dataclass
class TrainingState:
    """A run in training: `advance` trains whole epochs, `save` writes a checkpoint, `finish` sets the final weights."""

    run: Run
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    progress: Progress
    average: Weights
    best: Weights
    sharded: bool = False  # the optimiser, over workers

    def __post_init__(self) -> None:
        started = distributed.is_initialized()
        self.rank, self.world = (distributed.get_rank(), distributed.get_world_size()) if started else (0, 1)
        self.experiment = self.run.experiment
        self.device = next(self.run.network.parameters()).device
        self.parameters = [p for p in self.run.network.parameters() if p.requires_grad]
        self.feed = Feed(self.run, self.rank, self.world)
        self.norm = torch.zeros((), device=self.device)  # of the gradient of the latest update
        # loss and rows of this rank since they were last summed over ranks
        self.pending = torch.zeros(2, dtype=torch.float64, device=self.device)

    def advance(self, epochs: int) -> None:
        """Train until `epochs` epochs of the run are done, those before a restart included."""
        with cpu.fast(self.run.network):
            while self.progress.epoch < epochs:
                self._epoch()

    def save(self, folder: Path) -> None:
        """Write a checkpoint into `folder`."""
        network, optimizer = self.run.network, self.optimizer
        checkpoint.save(folder, network, optimizer, self.progress, self.average, self.best)

    def _checkpoint(self, metrics: dict[str, float]) -> None:
        """Report metrics and a checkpoint, which the first worker writes with the whole of a sharded optimiser."""
        with collected(self.optimizer) if self.sharded else nullcontext():
            self.run.report(metrics, self.save)

    def finish(self) -> None:
        """Set the network to the weights to deploy, and to evaluation mode."""
        if self.average:
            count = self.experiment.training.average_last
            mean = {name: (tensor / count).to(tensor.dtype) for name, tensor in self.average.items()}
            restore_weights(self.run.network, mean)
        elif self.best:
            restore_weights(self.run.network, self.best)
        self.run.network.eval()

    def calibrate(self) -> None:
        """Let techniques fit what depends on the final weights, and record their figures."""
        embed = functools.partial(self.run.embed, precision=self.progress.precision)
        self.progress.facts |= calibrate(self.run.setup, self.run.network, lambda one: embed)

    def _epoch(self) -> None:
        """Train what is left of the current epoch, then measure dev and report a checkpoint."""
        progress, training = self.progress, self.experiment.training
        total = self.run.setup.updates
        updates = total // training.epochs
        every = max(1, total // REPORTS)
        self.run.network.train()
        for draws in self.feed.updates(progress.epoch, progress.update):
            self._update(draws, total)
            progress.update += 1
            progress.step += 1
            if progress.step == 1:
                self._sum_losses()  # a fault before anything is learned has another remedy than a later one
            if progress.step % every == 0:
                self._report_loss(total)
            due = training.checkpoint_every and progress.step % training.checkpoint_every == 0
            if due and progress.update < updates:  # the epoch's end has a checkpoint of its own
                self._sum_losses()
                self._checkpoint({"step": progress.step})
        self._end_epoch()

    def _update(self, draws: Draws, total: int) -> None:
        factor = rate(self.experiment.training, self.progress.step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        # dropout is seeded by (seed, update, rank): the same masks are drawn after a restart
        address = np.random.SeedSequence([self.experiment.seed, self.progress.step, self.rank])
        torch.manual_seed(int(address.generate_state(1)[0]))
        batches = list(self.feed.batches(draws, self.progress, total))
        for number, batch in enumerate(batches, start=1):
            self._step(batch, max(len(draws), 1), last=number == len(batches))
        if not len(draws):  # its losses are means, and it counts as one row
            self.pending[1] += 1 / self.world
        self.norm = nn.utils.clip_grad_norm_(self.parameters, self.experiment.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _step(self, batch: Batch, rows: int, last: bool) -> None:
        batch = {key: value.to(self.device) for key, value in batch.items()}
        if isinstance(self.forward, DistributedDataParallel):
            self.forward.require_backward_grad_sync = last  # what no_sync() sets, without nesting
        with autocast(self.device, self.progress.precision):
            loss = self.forward(batch)
        # DDP averages over workers; the mean wanted is over the rows of the update
        (loss * (self.world / rows)).backward()
        self.pending += torch.stack([loss.detach(), batch["weight"].sum()]).double()

    def _sum_losses(self) -> None:
        """Add the losses since the last call, summed over ranks, to the progress; raise where they are not finite."""
        summed = self.pending.clone()
        if self.world > 1:
            distributed.all_reduce(summed)
        loss, rows = summed.tolist()
        self.progress.window_loss += loss
        self.progress.window_rows += rows
        self.progress.epoch_loss += loss
        self.progress.epoch_rows += rows
        self.pending.zero_()
        # here, so that no checkpoint and no result is made of weights that are not numbers
        if not (math.isfinite(loss) and math.isfinite(float(self.norm))):
            raise FloatingPointError(self._diverged(loss / max(rows, 1)))

    def _diverged(self, loss: float) -> str:
        training, step = self.experiment.training, self.progress.step
        what = f"loss {loss}, norm of the gradient {float(self.norm)}"
        exact = self.progress.precision == "float32"
        if step > 1:
            otherwise = "" if exact else " or set training.precision=float32"
            remedy = f"lower training.learning_rate (now {training.learning_rate}){otherwise}"
            return f"training diverged by update {step}: {what}; {remedy}"
        # nothing has been learned yet, so that no learning rate is to blame
        if not exact:
            return f"training: {what} at the first update, computed in bfloat16; set training.precision=float32"
        init = self.experiment.network.init
        return f"training: {what} at the first update, computed in float32 from {init!r} as it is; {BROKEN}"

    def _report_loss(self, total: int) -> None:
        self._sum_losses()
        progress = self.progress
        metrics = {"step": progress.step, "steps": total, "train/loss": progress.window_loss / progress.window_rows}
        metrics["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        progress.reported.append(metrics)
        self.run.emit(metrics)
        progress.window_loss = progress.window_rows = 0.0

    def _end_epoch(self) -> None:
        self._sum_losses()
        progress = self.progress
        row: dict[str, float] = {"epoch": progress.epoch + 1, "step": progress.step}
        row |= {"train/epoch_loss": progress.epoch_loss / progress.epoch_rows} | self._dev()
        progress.history.append(row)
        progress.epoch_loss = progress.epoch_rows = 0.0
        progress.epoch, progress.update = progress.epoch + 1, 0
        self._keep_weights(row)
        self.run.emit(row)
        self._checkpoint(row)

    def _dev(self) -> dict[str, float]:
        """Measure the mean of the main metric on dev of the sources and, where the run is an oracle, of the targets."""
        sources, targets = self.experiment.sources, self.experiment.targets
        tables = self.run.setup.tables("dev") if self.experiment.training.labelled else {}
        if targets != "all":
            tables = {code: table for code, table in tables.items() if code in {*targets, *sources}}
        if not tables:
            return {}
        inputs, setup = self.run.inputs(self.progress.precision), self.run.setup
        predictions = evaluate.predict(self.run.network, setup.task, tables, inputs, readings=setup.readings)
        found: dict[str, list[float]] = {}
        for code, one in predictions.items():
            kind = "dev" if code in sources else "oracle_dev"
            found.setdefault(f"{kind}/{setup.task.metrics[0]}", []).append(one.score)
        return {name: float(np.mean(scores)) for name, scores in found.items()}

    def _keep_weights(self, row: dict[str, float]) -> None:
        """Add the weights to the average of the last epochs, and copy them where the epoch is the best on dev."""
        training, weights = self.experiment.training, trained(self.run.network)
        if training.average_last > 1 and self.progress.epoch > training.epochs - training.average_last:
            for name, tensor in weights.items():
                self.average[name] = self.average[name] + tensor if name in self.average else tensor.clone()
        kind = {"source_dev": "dev", "target_dev": "oracle_dev"}.get(training.select)
        key = f"{kind}/{self.run.setup.task.metrics[0]}"
        if kind and row[key] > self.progress.best_score:
            self.progress.best_score = row[key]
            self.best.update({name: tensor.clone() for name, tensor in weights.items()})
