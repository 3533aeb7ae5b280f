from flatship_receiver.windows import BUDGET, STREAMS, Streams, Windows


def granted(windows: Windows) -> Streams:
    streams = windows.grant()
    assert streams is not None
    return streams


def test_a_session_alone_gets_the_largest_window() -> None:
    streams = granted(Windows())
    assert (streams.window_log, streams.count) == (25, STREAMS)


def test_further_sessions_get_less_and_then_nothing() -> None:
    windows = Windows(BUDGET)
    sizes = []
    while (streams := windows.grant()) is not None:
        sizes.append(streams.count << streams.window_log)
    assert sizes == [64 << 20, 16 << 20, 16 << 20]
    assert sum(sizes) <= BUDGET


def test_what_a_session_gives_back_another_gets() -> None:
    windows = Windows(64 << 20)
    first = granted(windows)
    assert windows.grant() is None
    first.release()
    first.release()  # once is enough
    assert granted(windows).window_log == 25
    assert windows.grant() is None


def test_no_more_streams_are_open_than_were_granted() -> None:
    streams = granted(Windows())
    assert streams.open() is not None
    assert streams.open() is not None
    assert streams.open() is None
    streams.close()
    assert streams.open() is not None
