# For type checkers: what `import mpshm` has.  At run time __init__.py takes it from the default
# context and from stock.
from multiprocessing import (
    Array as Array,
    AuthenticationError as AuthenticationError,
    Barrier as Barrier,
    BoundedSemaphore as BoundedSemaphore,
    BufferTooShort as BufferTooShort,
    Condition as Condition,
    Event as Event,
    Lock as Lock,
    ProcessError as ProcessError,
    RawArray as RawArray,
    RawValue as RawValue,
    RLock as RLock,
    Semaphore as Semaphore,
    TimeoutError as TimeoutError,
    Value as Value,
    active_children as active_children,
    allow_connection_pickling as allow_connection_pickling,
    cpu_count as cpu_count,
    current_process as current_process,
    freeze_support as freeze_support,
    get_all_start_methods as get_all_start_methods,
    get_logger as get_logger,
    get_start_method as get_start_method,
    log_to_stderr as log_to_stderr,
    parent_process as parent_process,
    reducer as reducer,
    set_executable as set_executable,
    set_forkserver_preload as set_forkserver_preload,
    set_start_method as set_start_method,
)

from . import (
    connection as connection,
    context as context,
    errors as errors,
    executor as executor,
    managers as managers,
    pool as pool,
    queues as queues,
)
from ._channel.totals import process_stats as _process_stats
from ._install import install as install, uninstall as uninstall
from ._memory.arena import trim as trim
from ._memory.buffer import Buffer as Buffer
from ._memory.tracking import Tracking as Tracking
from ._pool.lost import WorkerLostError as WorkerLostError
from ._stats import Stats as Stats
from .connection import Connection as Connection
from .context import Process as Process, default_context as _default
from .errors import (
    BufferTooSmall as BufferTooSmall,
    PlainRoadError as PlainRoadError,
    ProtocolError as ProtocolError,
)
from .executor import ProcessPoolExecutor as ProcessPoolExecutor
from .queues import (
    JoinableQueue as JoinableQueue,
    Queue as Queue,
    SimpleQueue as SimpleQueue,
)

__version__: str
__all__: list[str]

Manager = _default.Manager
Pipe = _default.Pipe
Pool = _default.Pool
get_context = _default.get_context
stats = _process_stats
