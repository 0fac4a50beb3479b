"""Volumes that grow, seen in a guest."""

import re

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200), pytest.mark.usefixtures("leftovers")]
SIZES = {  # before and after, in MiB; vfat stays
    "ext2": (16, 100), "ext3": (64, 65), "ext4": (512, 513), "xfs": (512, 1000), "btrfs": (256, 301),
    "vfat": (16, 16),
}  # fmt: skip


def test_every_file_system_that_can_grows_with_its_data(microvm_cli, tmp_path, tool):
    kinds = [kind for kind in SIZES if tool(f"mkfs.{kind}")]

    def run(after, *command):
        volumes = [{"image": "root.img", "mount_point": "/", "size": (64, 200)[after]}]
        volumes += [
            {"image": f"{k}.img", "mount_point": f"/{k}", "fs_type": k, "size": SIZES[k][after]}
            for k in kinds
        ]
        lines = ["[microvms.box]"]
        for volume in volumes:
            lines.append("[[microvms.box.volumes]]")
            lines += [f"{key} = {value!r}" for key, value in volume.items()]
        (tmp_path / "microvm.toml").write_text("\n".join(lines) + "\n")
        ran = microvm_cli("run", str(tmp_path), "--", "sh", "-c", *command, timeout=900)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    places = " ".join(f"/{kind}" for kind in kinds)
    run(0, f"for i in / {places}; do echo kept >$i/file; done")
    seen = run(
        1,
        f"for i in / {places}; do cat $i/file; done; df -m / " + places,
    )
    assert seen.count("kept") == 1 + len(kinds)
    have = {
        words[5]: int(words[1])
        for words in map(str.split, seen.splitlines())
        if len(words) == 6 and re.fullmatch(r"[0-9]+", words[1])
    }
    assert have["/"] > 150
    for kind in kinds:
        # What the file system keeps for itself, and a last group with no room for its tables.
        assert have[f"/{kind}"] > SIZES[kind][1] * 0.8, seen
    again = run(1, "dmesg | grep -i 'resized'; true")
    assert "resized" not in again
