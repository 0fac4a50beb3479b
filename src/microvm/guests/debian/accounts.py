"""Accounts of a guest as lines of passwd, group, shadow and gshadow, written without its tools.

useradd would write today's date and lock files, and costs a process for each user.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microvm.errors import MicroVMError

FIRST_UID = 1000


@dataclass(slots=True)
class Accounts:
    """The four files of a root, parsed; `save` writes those that changed."""

    root: Path
    passwd: dict[str, list[str]] = field(default_factory=dict)
    group: dict[str, list[str]] = field(default_factory=dict)
    shadow: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> "Accounts":
        """Read the accounts of a root."""
        accounts = cls(root)
        for table in ("passwd", "group", "shadow"):
            path = root / "etc" / table
            for line in path.read_text().splitlines() if path.exists() else ():
                fields = line.split(":")
                getattr(accounts, table)[fields[0]] = fields
        return accounts

    def add(self, name: str, user: dict[str, Any]) -> None:
        """Add or change one account. Raises `MicroVMError` for a uid that another one has."""
        if name in self.passwd:
            entry = self.passwd[name]
            entry[6] = user["shell"]
            if user["uid"] not in (None, int(entry[2])):
                raise MicroVMError(
                    f"the user {name} can't have uid {user['uid']}: it is there with {entry[2]}",
                    hint="leave `uid` out",
                )
        else:
            entry = self._new_entry(name, user)
        if user["home"]:
            entry[5] = user["home"]
        hashed = user["password_hash"]
        self.shadow.setdefault(name, [name, "!", "", "0", "99999", "7", "", "", ""])
        if hashed is not None:
            self.shadow[name][1] = hashed
        for group in user["groups"]:
            self._join(name, group)
        if user["sudo"]:
            self._join(name, "sudo")

    def _new_entry(self, name: str, user: dict[str, Any]) -> list[str]:
        taken = {int(fields[2]): other for other, fields in self.passwd.items()}
        uid = user["uid"]
        if uid is None:
            uid = next(number for number in range(FIRST_UID, 60000) if number not in taken)
        elif uid in taken:
            raise MicroVMError(f"the user {name} can't have uid {uid}: {taken[uid]} has it")
        if name not in self.group:
            self.group[name] = [name, "x", str(self._free_gid(uid)), ""]
        entry = [name, "x", str(uid), self.group[name][2], "", f"/home/{name}", user["shell"]]
        self.passwd[name] = entry
        return entry

    def _free_gid(self, wanted: int) -> int:
        taken = {int(fields[2]) for fields in self.group.values()}
        return (
            wanted if wanted not in taken else next(n for n in range(1000, 60000) if n not in taken)
        )

    def _join(self, name: str, group: str) -> None:
        entry = self.group.setdefault(group, [group, "x", str(self._free_gid(FIRST_UID)), ""])
        members = [member for member in entry[3].split(",") if member]
        if name not in members:
            entry[3] = ",".join((*members, name))

    def owner(self, text: str) -> tuple[int, int]:
        """Return uid and gid of `USER` or `USER:GROUP`, names or numbers. Raises `MicroVMError`."""
        user, _, group = text.partition(":")
        if user.isdigit():
            uid, default = int(user), int(user)
        elif user in self.passwd:
            uid, default = int(self.passwd[user][2]), int(self.passwd[user][3])
        else:
            raise MicroVMError(f"the guest has no user {user!r} to own a file")
        if not group:
            return uid, default
        if group.isdigit():
            return uid, int(group)
        if group not in self.group:
            raise MicroVMError(f"the guest has no group {group!r} to own a file")
        return uid, int(self.group[group][2])

    def save(self) -> None:
        """Write the tables back."""
        for table, mode in (("passwd", 0o644), ("group", 0o644), ("shadow", 0o640)):
            lines = [":".join(fields) + "\n" for fields in getattr(self, table).values()]
            path = self.root / "etc" / table
            path.write_text("".join(lines))
            path.chmod(mode)
        gshadow = self.root / "etc/gshadow"
        lines = [f"{name}:*::{fields[3]}\n" for name, fields in self.group.items()]
        gshadow.write_text("".join(lines))
        gshadow.chmod(0o640)
        shadow_gid = int(self.group["shadow"][2]) if "shadow" in self.group else 0
        for table in ("shadow", "gshadow"):
            import os

            os.chown(self.root / "etc" / table, 0, shadow_gid)
