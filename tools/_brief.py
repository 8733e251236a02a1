# SPDX-License-Identifier: Apache-2.0
"""``tools/train.py --brief``: a screen with what matters, beside a log file with everything."""

import atexit
import datetime
import io
import logging
import os.path as osp
import sys
from numbers import Real

from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Held:
    """From its creation on, what is printed stays off the screen until there is a log file for it.

    If there never is one, because the program fails before, all of it is printed at the end.
    """

    def __init__(self) -> None:
        self.text = io.StringIO()
        self.screen = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = self.text
        atexit.register(self.release)

    def release(self, logger: logging.Logger | None = None) -> None:
        """Give the screen back; what was held goes to the files of ``logger``, and so do Python's warnings."""
        if sys.stdout is not self.text:
            return
        sys.stdout, sys.stderr = self.screen
        files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)] if logger else []
        held = self.text.getvalue().rstrip()
        if not files:
            print(held, end='\n' if held else '', file=sys.stderr)
            return
        logging.captureWarnings(True)
        warnings = logging.getLogger('py.warnings')
        warnings.propagate = False
        warnings.handlers = files
        if held:
            record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, f'Printed before:\n{held}', (), None)
            for handler in files:
                handler.handle(record)


def start():
    """Hold what is printed, and return what derives a brief runner from a runner's class."""
    held = Held()

    def derive(kind):
        class BriefRunner(kind):
            """Writes its log to the file alone, but for errors, and shows progress on the screen."""

            def build_logger(self, *args, **kwargs):
                logger = super().build_logger(*args, **kwargs)
                for handler in logger.handlers:
                    if not isinstance(handler, logging.FileHandler):
                        handler.setStream(held.screen[0])
                        handler.setLevel(logging.ERROR)
                held.release(logger)
                return logger

            def register_hooks(self, *args, **kwargs):
                super().register_hooks(*args, **kwargs)
                if is_main_process():
                    self.screen = ScreenHook()
                    self.register_hook(self.screen, priority='VERY_LOW')

            def train(self):
                try:
                    return super().train()
                finally:  # a bar that is left running hides the cursor
                    if is_main_process():
                        self.screen.stop()

        return BriefRunner

    return derive


class ScreenHook(Hook):
    """A bar where the output is a terminal, a line for each line of the LoggerHook, and one for each validation."""

    progress = None

    def before_train(self, runner: Runner) -> None:
        self.console = Console(highlight=False)
        self.interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 10)
        self.total = runner.max_iters
        log = min(osp.relpath(runner.logger.log_file), runner.logger.log_file, key=len)
        self.console.print(f'{self.total} iterations; the whole log: {log}', soft_wrap=True)
        columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.progress = Progress(*columns, console=self.console, transient=True, auto_refresh=False)
        self.task = self.progress.add_task('training', total=self.total, completed=runner.iter)
        self.progress.start()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        done = runner.iter + 1
        self.progress.update(self.task, completed=done, refresh=True)
        if self.every_n_inner_iters(batch_idx, self.interval):
            tag, _ = runner.log_processor.get_log_after_iter(runner, batch_idx, 'train')
            left = datetime.timedelta(seconds=int(runner.message_hub.get_info('eta', 0)))
            self.print(done, f'loss {tag["loss"]:.4f}  {left} left')

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        description = f'validation, picture {batch_idx + 1} of {len(runner.val_dataloader)}'
        self.progress.update(self.task, description=description, refresh=True)

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        self.progress.update(self.task, description='training')
        found = (f'{name} {value:.4g}' for name, value in (metrics or {}).items() if isinstance(value, Real))
        self.print(runner.iter, 'validation: ' + ', '.join(found))

    def stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()

    def print(self, done, text):
        """A line, cut at the width of the screen."""
        line = f'{done:{len(str(self.total))}}/{self.total}  {text}'
        self.console.print(line, overflow='ellipsis', no_wrap=True)
