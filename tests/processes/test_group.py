import threading

from bitkd.processes import group


def test_a_version_of_lightning_without_the_patched_thread_is_reported(caplog):
    group._report_dead_ranks(launched=False)
    assert caplog.text == ""
    group._report_dead_ranks(launched=True)
    assert "Lightning has no thread child-process-observer" in caplog.text
    assert "install lightning<2.7" in caplog.text


def test_lightnings_observer_is_patched(caplog):
    done = threading.Event()
    observer = threading.Thread(target=done.wait, name=group.OBSERVER)
    observer._child_processes, observer._terminate_all = [], None
    observer.start()
    group._report_dead_ranks(launched=True)
    done.set()
    observer.join()
    assert observer._terminate_all.func is group._bring_down
    assert caplog.text == ""
