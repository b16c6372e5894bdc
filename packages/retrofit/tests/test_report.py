"""The report's tables."""

from retrofit.report import metrics_note, transport_table


def move(step, after, kl):
    return {"step": step, "transport_ppl_before": 100.0, "transport_ppl_after": after, "transport_kl": kl}


def test_the_first_transport_stands_beside_the_others():
    """Two seeds, whose first transport does nearly all; a mean would spread it."""
    seed = [move(8, 550.0, 1.7), move(16, 98.0, 0.001), move(24, 99.0, 0.002), move(32, 101.0, 0.003)]
    (row,) = transport_table({"geometry": [*seed, *seed]}).rows
    name, count, first, others, largest, kl_first, kl_others, factor = row
    assert (name, count, factor) == ("geometry", 8, None)
    assert (round(first, 9), round(others, 9), round(largest, 9)) == (450, -1, 450)
    assert (kl_first, kl_others) == (1.7, 0.002)
    (alone,) = transport_table({"geometry": [move(8, 550.0, 1.7)]}).rows
    assert alone[3] == alone[6] == ""


def test_the_note_tells_the_tokens_and_warns_of_few():
    assert "on 4,096 fixed tokens" in metrics_note({"activation_tokens": 4096}, {"ffn_width": 1024})
    assert "Warning" not in metrics_note({"activation_tokens": 4096}, {"ffn_width": 1024})
    few = metrics_note({"activation_tokens": 4096}, {"ffn_width": 1536})
    assert "Warning: 4096 tokens are fewer than 4 x the FFN's width 1536" in few
    assert "--activation-tokens 6144" in few
    assert "tokens" not in metrics_note({}, {})
