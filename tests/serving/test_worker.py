"""The one inference thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from functools import partial

import pytest

from wherry.errors import AdmissionError
from wherry_serving.worker import Worker


def test_jobs_run_in_order_on_one_thread_and_errors_come_back():
    order = []

    def job(number):
        order.append((number, threading.get_ident()))
        if number == 3:
            raise ValueError("three")
        return number

    async def main():
        worker = Worker(waiting=10)
        worker.start()
        jobs = [asyncio.ensure_future(worker.run(partial(job, number))) for number in range(5)]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        assert worker.pending == 0
        assert worker.stop(5)
        return found

    found = asyncio.run(main())
    assert [str(item) for item in found] == ["0", "1", "2", "three", "4"]
    assert [number for number, _ in order] == [0, 1, 2, 3, 4]
    assert {ident for _, ident in order}.isdisjoint({threading.get_ident()})


def test_a_job_whose_asker_left_is_not_run():
    gate, ran = threading.Event(), []

    async def main():
        worker = Worker(waiting=2)
        worker.start()
        first = asyncio.ensure_future(worker.run(lambda: gate.wait(10)))
        second = asyncio.ensure_future(worker.run(lambda: ran.append("second")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        gate.set()
        assert await first
        await worker.run(lambda: ran.append("third"))
        assert worker.pending == 0
        worker.stop(5)

    asyncio.run(main())
    assert ran == ["third"]


def test_a_full_queue_refuses_and_empties_again():
    gate = threading.Event()

    async def main():
        worker = Worker(waiting=1)
        worker.start()
        jobs = [asyncio.ensure_future(worker.run(lambda: gate.wait(10))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(AdmissionError, match="full with 1"):
            await worker.run(lambda: None)
        gate.set()
        await asyncio.gather(*jobs)
        await worker.run(lambda: None)
        worker.stop(5)

    asyncio.run(main())


def test_a_stuck_job_is_reported_at_the_end():
    gate = threading.Event()

    async def main():
        worker = Worker(waiting=1)
        worker.start()
        job = asyncio.ensure_future(worker.run(lambda: gate.wait(30)))
        await asyncio.sleep(0)
        assert not worker.stop(0.01)
        job.cancel()

    asyncio.run(main())
    gate.set()


@pytest.mark.timeout(20)
def test_an_idle_worker_holds_no_request():
    class Big:
        pass

    async def main():
        worker = Worker(waiting=1)
        worker.start()
        big = Big()
        known = weakref.ref(big)
        await worker.run(partial(id, big))
        del big
        while known() is not None:  # the thread lets go just after it has answered; pytest-timeout bounds this
            await asyncio.sleep(0)
            gc.collect()
        worker.stop(5)

    asyncio.run(main())
