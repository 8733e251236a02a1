#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Kill a training by SIGKILL again and again, resume it, and hold its weights against those of an uninterrupted one.

Half of the kills come from outside at any time, from the start of the process on; the others at chosen steps of
writing and removing a checkpoint, where the process kills itself. Each run is a fork of this process, which has
imported everything, and calls what tools/train.py calls.

    tools/dev/kill_runs.py configs/demo/segformer_mit-b0_sapa-g_demo.py

prints a table and ends with status 1 unless every run could be resumed, from no earlier than the last checkpoint that
was whole, and all weights are equal bit for bit.
"""

import argparse
import builtins
import os
import random
import re
import shutil
import signal
import stat
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import train  # before torch: sets how its threads wait
from _common import read_config, register_toolbox
from rich.console import Console
from rich.table import Table

ANY_TIME = 'any time'


def is_file(descriptor):
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def is_checkpoint(path):
    return str(path).endswith('.pth')


def is_pointer(path, mode='r', *args, **kwargs):
    return str(path).endswith('last_checkpoint') and mode == 'w'


def is_any(*args, **kwargs):
    return True


#: Moment -> where the process dies: the function it is in, which of its calls count, and whether before or after.
MOMENTS = {
    'half of the file written': (os, 'fsync', is_file, 'cut'),
    'written, not renamed': (os, 'replace', is_any, 'before'),
    'renamed, pointer still old': (os, 'replace', is_any, 'after'),
    'pointer empty': (builtins, 'open', is_pointer, 'after'),
    'before the old is removed': (os, 'remove', is_checkpoint, 'before'),
    'after the old is removed': (os, 'remove', is_checkpoint, 'after'),
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment, times):
    """Let this process die when it comes to ``moment`` the ``times``-th time."""
    owner, name, counts, when = MOMENTS[moment]
    original = getattr(owner, name)
    left = times

    def wrapper(*args, **kwargs):
        nonlocal left
        left -= bool(counts(*args, **kwargs))
        now, left = left == 0, left or -1
        if now and when == 'cut':
            os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
        if now and when != 'after':
            die()
        result = original(*args, **kwargs)
        if now:
            die()
        return result

    setattr(owner, name, wrapper)


def start(arguments, log, moment=None, times=1):
    """Start a training in a process of its own and return the process' number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        sys.stdout = sys.stderr = Path(log).open('w', buffering=1)
        if moment is not None:
            arm(moment, times)
        sys.argv = ['train.py', *map(str, arguments)]
        train.main()
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(pid):
    """Wait for a process; returns its status, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_and_kill(pid, seconds):
    """Kill a process after some seconds unless it is over before, and return its status."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


def different_weights(one, other):
    """Names of the weights of two checkpoints that are not equal bit for bit."""
    import torch

    states = [torch.load(path, map_location='cpu', weights_only=False)['state_dict'] for path in (one, other)]
    if states[0].keys() != states[1].keys():
        return sorted(states[0].keys() ^ states[1].keys())
    return [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]


@dataclass
class Tally:
    """What became of the kills of trainings that keep so many checkpoints."""

    kept: int
    kills: Counter = field(default_factory=Counter)
    resumed: Counter = field(default_factory=Counter)
    set_back: Counter = field(default_factory=Counter)  #: resumed from before a checkpoint that was whole
    finished: int = 0
    equal: int = 0
    too_many: int = 0  #: trainings that left more files than were to be kept

    @property
    def is_good(self):
        return self.resumed == self.kills and not self.set_back and not self.too_many and self.finished == self.equal


def whole_step(folder):
    """The iteration of the newest checkpoint, 0 without one."""
    return max((int(path.stem.removeprefix('iter_')) for path in folder.glob('iter_*.pth')), default=0)


def train_through_kills(arguments, folder, schedule, seconds, rng, tally):
    """Train once from start to end, through kills that are taken from ``schedule``.

    Returns the exit status, and how long a whole training takes: other work on the machine changes that.
    """
    folder.mkdir(parents=True)
    suffered = Counter()
    for number in range(1000):
        moment = schedule.pop() if schedule else None
        step, log = whole_step(folder), folder / f'{number}.txt'
        command = [arguments[0], '--resume', '--work-dir', folder, *arguments[1:]]
        begin = time.monotonic()
        if moment == ANY_TIME:
            status = wait_and_kill(start(command, log), rng.uniform(0, seconds))
        else:
            status = wait(start(command, log, moment, rng.randint(1, 2)))
        found = re.search(r'resumed epoch: \d+, iter: (\d+)', log.read_text())
        if (found or status == 0) and int(found[1] if found else 0) < step:
            tally.set_back[moment] += 1
        if status != -signal.SIGKILL:
            seconds = seconds if step else time.monotonic() - begin
            break
        suffered[moment] += 1
    if moment is not None:  # it was over before
        schedule.insert(0, moment)
    tally.kills += suffered
    if status == 0:
        tally.resumed += suffered
    else:
        print(f'{log}: status {status}\n{log.read_text()[-2000:]}', file=sys.stderr)
    tally.too_many += len([*folder.glob('*.pth*')]) > tally.kept
    return status, seconds


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config of a training that counts iterations')
    parser.add_argument('--kills', type=int, default=20, help='kills for each number of kept checkpoints (default: 20)')
    parser.add_argument('--keep', type=int, nargs='+', default=[1, 3], help='checkpoints to keep (default: 1 3)')
    parser.add_argument('--iterations', type=int, default=40, help='length of a training (default: 40)')
    parser.add_argument('--interval', type=int, default=4, help='iterations from checkpoint to checkpoint (default: 4)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default: 0)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/kill_runs'), help='is emptied first')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='as for tools/train.py')
    return parser.parse_args()


def main():
    args = parse_args()
    shutil.rmtree(args.work_dir, ignore_errors=True)
    register_toolbox(read_config(args.config))  # once for all forks
    options = [
        *args.cfg_options,
        f'train_cfg.max_iters={args.iterations}',
        f'default_hooks.checkpoint.interval={args.interval}',
        'randomness.seed=3',
    ]
    command = [args.config, '--cfg-options', *options]
    last, begin = f'iter_{args.iterations}.pth', time.monotonic()
    expected = args.work_dir / 'uninterrupted' / last
    expected.parent.mkdir(parents=True)
    log = expected.parent / 'log.txt'
    if wait(start([command[0], '--work-dir', expected.parent, *command[1:]], log)) != 0:
        raise SystemExit(f'the uninterrupted training failed:\n{log.read_text()[-2000:]}')
    seconds = time.monotonic() - begin
    print(f'An uninterrupted training takes {seconds:.1f} s.')

    rng, tallies = random.Random(args.seed), []
    for kept in args.keep:
        tally = Tally(kept)
        tallies.append(tally)
        at_steps = args.kills // 2
        schedule = [*[*MOMENTS] * at_steps][:at_steps] + [ANY_TIME] * (args.kills - at_steps)
        rng.shuffle(schedule)
        keep = f'default_hooks.checkpoint.max_keep_ckpts={kept}'
        for number in range(10 * args.kills):
            if not schedule:
                break
            folder = args.work_dir / f'keep_{kept}_{number}'
            status, seconds = train_through_kills([*command, keep], folder, schedule, seconds, rng, tally)
            if status == 0:
                tally.finished += 1
                tally.equal += not different_weights(expected, folder / last)

    table = Table('kept', 'killed', 'kills', 'resumed', 'set back')
    for tally in tallies:
        for moment in (ANY_TIME, *MOMENTS):
            row = (tally.kept, moment, tally.kills[moment], tally.resumed[moment], tally.set_back[moment])
            table.add_row(*map(str, row))
        table.add_section()
    total = [sum(getattr(tally, name).total() for tally in tallies) for name in ('kills', 'resumed', 'set_back')]
    table.add_row('', 'all', *map(str, total))
    Console().print(table)
    equal, finished, more = (sum(getattr(tally, n) for tally in tallies) for n in ('equal', 'finished', 'too_many'))
    print(
        f'{equal} of {finished} finished trainings have the weights of the uninterrupted one, bit for bit; '
        f'{more} left more checkpoints than were to be kept.'
    )
    raise SystemExit(0 if all(tally.is_good for tally in tallies) and finished else 1)


if __name__ == '__main__':
    main()
