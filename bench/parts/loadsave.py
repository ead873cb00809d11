"""Cold files to a synced output against everything loaded, merged in torch, and saved."""

from __future__ import annotations

from files import checkpoints, make_cold, remove
from once import in_child
from rows import Row, less_cpu
from settings import DENSITY, Settings
from timing import Times

from parts.mergekit import check_peer
from parts.streaming import check, streamed


def run(settings: Settings) -> list[Row]:
    call = {"density": DENSITY, "scope": "model"}
    check(settings, **call)
    check_peer("ties")
    with checkpoints(settings) as folders:
        output = folders[0].parent / "saved"
        make_cold(folders)
        found = in_child("torch", folders=list(map(str, folders)), output=output, density=DENSITY)
        remove(output)
        ours = []
        for _ in range(min(3, settings.long_repetitions)):
            make_cold(folders)
            ours.append(streamed(folders, settings.threads, **call))
    peer = Times((found.wall,), (found.cpu,))
    mine = Times(tuple(f.wall for f in ours), tuple(f.cpu for f in ours))
    what = "streaming TIES, whole model, against load, torch and save"
    wall = Row(
        f"{what}, wall",
        "× faster",
        peer.best / mine.best,
        tuple(peer.best / seconds for seconds in mine.wall),
        30,
        beside=f"{peer.best:.1f} s against {mine.best:.2f} s",
        detail={"peer_peak_bytes": found.peak},
    )
    return [wall, less_cpu(f"{what}, CPU", peer, mine, 200)]
