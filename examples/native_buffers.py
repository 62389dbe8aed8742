"""No copy at all: fill a message where it will be read.

    python examples/native_buffers.py

send(array) costs one copy, from the array into shared memory. A sender that asks for the memory
first and computes straight into it saves that one too: get_buf() lends a buffer, send_buf() hands
it over, recv_buf() lends it to the receiver, and the end of the with block gives it back.
"""

import numpy as np
import numpy.typing as npt

import mpshm
from mpshm.connection import Connection

Samples = npt.NDArray[np.float64]

FRAMES = 8
FRAME_SAMPLES = 1 << 17  # 1 MiB of float64
EXTRA_SAMPLES = 1 << 10  # 8 KiB more


def produce(conn: Connection) -> None:
    """Send FRAMES sine waves, each computed in place; every second one is a little longer."""
    phase = np.linspace(0.0, 2.0 * np.pi, FRAME_SAMPLES + EXTRA_SAMPLES)
    for number in range(1, FRAMES + 1):
        samples = FRAME_SAMPLES
        buf = conn.get_buf(samples * phase.itemsize)
        if number % 2 == 0:
            # The message turned out longer than asked for: take the chunks behind it, move nothing.
            extra = EXTRA_SAMPLES * phase.itemsize
            buf.increase_buf(extra, min_size=extra)
            samples += EXTRA_SAMPLES
        wave: Samples = np.frombuffer(buf.view, np.float64, samples)
        np.multiply(phase[:samples], number, out=wave)
        np.sin(wave, out=wave)
        del wave  # from here on the memory is the receiver's
        conn.send_buf(buf)
    conn.close()


def main() -> None:
    context = mpshm.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    producer = context.Process(target=produce, args=(sender,))
    producer.start()
    sender.close()  # the producer has its own: when that one closes, recv_buf() raises EOFError
    for number in range(1, FRAMES + 1):
        with receiver.recv_buf() as buf:
            wave: Samples = np.frombuffer(buf.view, np.float64)
            rms = float(np.sqrt(np.mean(wave * wave)))
            print(f"frame {number}: {wave.nbytes / 2**20:.3f} MiB read in place, rms {rms:.6f}")
            del wave  # the with block gives the memory back, so nothing may look at it any more
    producer.join()


if __name__ == "__main__":
    main()
