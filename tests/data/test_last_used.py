"""What is kept in memory, and what is forgotten."""

from concurrent.futures import ThreadPoolExecutor

from fastvtp.data.storage.last_used import LastUsed


def known(used, keys):
    return [key for key in keys if used.get(key) is not None]


def test_what_was_used_longest_ago_is_forgotten():
    used = LastUsed[str, str](2)
    used.keep("a", "1")
    used.keep("b", "2")
    assert used.get("a") == "1"
    used.keep("c", "3")
    assert known(used, "abc") == ["a", "c"]
    assert used.keep("a", "4") == "4"
    assert (used.get("a"), used.held) == ("4", 2)


def test_values_count_by_their_weight_and_the_newest_stays():
    used = LastUsed[str, bytes](10, len)
    for key, weight in (("a", 4), ("b", 4), ("a", 6), ("c", 3)):
        used.keep(key, bytes(weight))
    assert (known(used, "abc"), used.held) == (["a", "c"], 9)
    used.keep("d", bytes(50))
    assert (known(used, "abcd"), used.held) == (["d"], 50)
    used.keep("e", bytes(1))
    assert (known(used, "de"), used.held) == (["e"], 1)


def test_what_is_forgotten_no_longer_weighs():
    used = LastUsed[str, bytes](10, len)
    for key in "abc":
        used.keep(key, bytes(2))
    used.forget("a", "x")
    assert (known(used, "abc"), used.held) == (["b", "c"], 4)
    used.forget()
    assert (known(used, "abc"), used.held) == ([], 0)


def test_threads_share_it():
    used = LastUsed[int, bytes](50, len)

    def work(number):
        used.keep(number % 40, bytes(number % 7))
        return used.get(number % 11)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(4000)))
    assert used.held == sum(len(value) for key in range(40) if (value := used.get(key)) is not None)
    assert used.held <= 50
