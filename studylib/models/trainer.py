"""Supervised training on completions with transformers' Trainer, for every model that studylib.models.training cannot compute itself."""

import logging
import time

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from studylib.models.hub import collator
from studylib.models.training import batches
from studylib.study.profile import TrainSettings
from studylib.study.words import StudyError


def fit(model, tokenizer, features: list[dict], settings: TrainSettings, seed: int, folder, label: str) -> list[dict]:
    """Trains the model in place for `settings.steps` steps; the loss curve as {step, loss} rows.

    `features` come from prompts.encode_example. The number of steps alone decides how long it takes (no epochs that it could
    override); rows are seen again when they run out. `folder` is needed by Trainer, nothing is written there.
    """
    if settings.matrix_learning_rate:
        raise StudyError(
            "matrix_learning_rate is for small models on the CPU alone: leave it out of the profile's tuning."
        )
    set_seed(seed)
    micro = settings.micro_batch_size or settings.batch_size
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optimizer,
        adam_beta2=settings.adam_beta2,
        logging_steps=max(1, settings.steps // 20),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False),
        activation_checkpointing=settings.gradient_checkpointing,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=features,
        data_collator=collator(tokenizer),
        callbacks=[_Progress(label)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]


class _Trainer(Trainer):
    """Trainer with the batches of studylib.models.training, cut into micro-batches."""

    def _get_train_sampler(self, train_dataset=None):
        return _Batches([len(row["input_ids"]) for row in self.train_dataset], self.args)


class _Batches(torch.utils.data.Sampler):
    def __init__(self, lengths, args):
        self.lengths = lengths
        self.size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.drawn = batches(lengths, self.size, args.seed)

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        for _ in range(-(-len(self.lengths) // self.size)):
            yield from next(self.drawn)


class _Progress(TrainerCallback):
    """One line every ten seconds: what, how far, how long still; and one at the end."""

    def __init__(self, label: str):
        self.label, self.log = label, logging.getLogger("studylib")

    def on_train_begin(self, args, state, control, **_):
        self.started = self.shown = time.monotonic()

    def on_log(self, args, state, control, logs=None, **_):
        now, step = time.monotonic(), state.global_step
        if logs and "loss" in logs and now - self.shown > 10:
            left = (now - self.started) / step * (state.max_steps - step)
            self.log.info(
                "%s: step %d of %d, loss %.3f, %.0f s left",
                self.label,
                step,
                state.max_steps,
                float(logs["loss"]),
                left,
            )
            self.shown = now

    def on_train_end(self, args, state, control, **_):
        self.log.info("%s: trained %d steps in %.0f s", self.label, state.global_step, time.monotonic() - self.started)
