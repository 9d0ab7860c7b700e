"""What is counted, and that a caller cannot make the labels grow without bound."""

from oip.server.metrics import ServerMetrics


def test_requests_by_route_and_status_and_stages() -> None:
    metrics = ServerMetrics()
    for _ in range(2):
        metrics.request("POST", "/v2/x", 200, [("read", 0.003, ""), ("compute", 0.2, "words")])
    text = metrics.exposition().decode()
    assert 'tandem_requests_total{method="POST",route="/v2/x",status="200"} 2.0' in text
    assert 'tandem_stage_seconds_bucket{le="0.005",stage="read"} 2.0' in text
    assert 'tandem_stage_seconds_bucket{le="0.1",stage="compute"} 0.0' in text
    assert 'tandem_stage_seconds_count{stage="compute"} 2.0' in text


def test_made_up_methods_share_a_label() -> None:
    metrics = ServerMetrics()
    for number in range(3):
        metrics.request(f"METHOD{number}", "unknown", 405, [])
    assert 'tandem_requests_total{method="other",route="unknown",status="405"} 3.0' in metrics.exposition().decode()


def test_two_processes_in_one_interpreter_count_apart() -> None:
    first, second = ServerMetrics(), ServerMetrics()
    first.request("GET", "/v2", 200, [])
    assert b'"/v2"' not in second.exposition()
