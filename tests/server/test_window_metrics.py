"""What ``/metrics`` says of KV memory when layers have windows."""

from __future__ import annotations

from ferrum.engine.reports import EngineInfo, EngineStats, PoolStats, WindowInfo
from ferrum.server.metrics import Metrics, render


def test_blocks_of_windows_count_with_their_own_bytes() -> None:
    numbers = dict.fromkeys((name for name in EngineStats.__struct_fields__ if name != "pools"), 0)
    pools = (PoolStats("window", 20, 5, 2),)
    stats = EngineStats(**numbers | {"blocks_used": 7, "blocks_total": 64, "prefix_cache_entries": 3}, pools=pools)  # type: ignore[arg-type]
    info = EngineInfo(
        model="x", device="cpu", vocab_size=9, max_model_len=1024, max_num_seqs=4, max_num_batched_tokens=64, max_queue=9,
        num_blocks=64, block_size=16, bytes_per_block=100, weight_bytes=1, kv_bytes=64 * 100 + 20 * 1000, prefix_cache=True,
        windows=[WindowInfo(window=48, num_blocks=20, bytes_per_block=1000)],
    )  # fmt: skip
    page = render(Metrics(), stats, info)
    for line in (
        "ferrum_kv_bytes 26400", "ferrum_kv_used_bytes 5700", "ferrum_prefix_cache_bytes 2300",
        'ferrum_state_places_used{group="0",kind="window"} 5', 'ferrum_state_places{group="0",kind="window"} 20',
    ):  # fmt: skip
        assert f"\n{line}\n" in page
