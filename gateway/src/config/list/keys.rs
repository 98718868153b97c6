//! The keys of `[lists]` and `[[list]]`, as they are read and described.

use crate::config::keys::{Absent, Form, Key, KeyTable, count, flag, text, word};
use crate::lists::guard;

pub(in crate::config) static LISTS: KeyTable = KeyTable {
    header: "[lists]",
    about: "What holds for all lists.",
    keys: &[
        Key::new(
            "snapshot",
            text("a path", Absent::Nothing),
            "A file that `portcullis lists compile` has written, perhaps on another machine. It \
             takes the place of all `[[list]]` tables.",
        ),
        Key::new(
            "shrink_max",
            count("percent", guard::SHRINK_MAX as u64, 0..=guard::OFF as u64),
            "How many of its entries a list may lose between two compiles. If a list loses more, \
             or is empty, all lists stay as they were. 100 switches the guard off.",
        ),
        Key::new(
            "grow_max",
            count("percent", guard::GROW_MAX as u64, 0..=guard::OFF as u64),
            "How much of all addresses a drop or reject list may newly cover between two \
             compiles. It may never newly cover a local network, an address of the gate, a next \
             hop or a name server. 100 switches both checks off.",
        )
        .see(&["relay.networks", "route.next_hop", "dnsbl_policy.servers"]),
        Key::new(
            "watch",
            flag(true),
            "Whether files of lists that change are read again within seconds. Otherwise SIGHUP \
             reads them.",
        ),
    ],
    later: &[],
};

pub(in crate::config) static LIST: KeyTable = KeyTable {
    header: "[[list]]",
    about: "A list of addresses from a file. A permit list wins over every other, and a hard drop \
            list over the rest; among lists of one kind the longest prefix decides, then the \
            order in the file. At most 256.",
    keys: &[
        Key::new(
            "name",
            text(
                "1 to 64 letters, digits, `-`, `_` and `.`",
                Absent::Required,
            ),
            "The name of the list in metrics, in rule names and in replies.",
        ),
        Key::new(
            "file",
            text("a path", Absent::Required),
            "The file of the list. Replace it by renaming a new one into its place.",
        )
        .see(&["lists.watch"]),
        Key::new(
            "format",
            word(
                "cidr",
                &[
                    ("cidr", "an address, a prefix or a range a line"),
                    (
                        "rbldnsd-ip4set",
                        "rbldnsd's file of IPv4 addresses, prefixes and ranges",
                    ),
                    (
                        "rbldnsd-ip4trie",
                        "rbldnsd's file of IPv4 prefixes, of which the longest decides",
                    ),
                    ("rbldnsd-ip4tset", "rbldnsd's file of single IPv4 addresses"),
                    (
                        "rbldnsd-ip6trie",
                        "rbldnsd's file of IPv6 prefixes, of which the longest decides",
                    ),
                    ("rbldnsd-ip6tset", "rbldnsd's file of IPv6 /64s"),
                    (
                        "spamhaus-json",
                        "one JSON object per line, the format of Spamhaus DROP",
                    ),
                ],
            ),
            "How the file is written.",
        ),
        Key::new(
            "action",
            Form::Word {
                default: Absent::Required,
                words: &[
                    (
                        "drop",
                        "the filter drops it in the kernel; without a filter 554 in SMTP",
                    ),
                    ("reject", "554 in SMTP"),
                    ("permit", "it passes, whatever other lists say"),
                ],
                later: &[],
            },
            "What happens to a source on the list. A permit list does not make a client local.",
        )
        .see(&["filter.mode", "filter.interfaces.role"]),
        Key::new(
            "hard",
            flag(false),
            "Whether a drop list holds for sources with a grant (POP-before-SMTP), too. A hard \
             list wins over drop lists that are not, whatever the prefix lengths.",
        ),
        Key::new(
            "strict",
            flag(false),
            "Whether an invalid line is an error. Otherwise it is skipped, counted and reported.",
        ),
    ],
    later: &["url", "refresh"],
};
