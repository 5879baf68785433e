"""A reproduction of "Grokking as Compression" (Liu, Zhong, Tegmark 2023, arXiv 2310.05918), Figure 2 and Figure 4."""

from enum import StrEnum


class TaskName(StrEnum):
    """The three tasks of the paper."""

    MODADD = "modadd"
    S4 = "s4"
    XOR = "xor"
