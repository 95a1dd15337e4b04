"""From runs to boards: columns, entries, statistics, ranks, what must be read beside them."""
