//! The words that are out, in comments, names and texts, with what to write instead.
//!
//! Readers are mail and network engineers from all over the world: a source, a client or a caller
//! is called so, and one thing has one name. A text is split into words at spaces, underscores and
//! capitals, so `SaysTheSame`, `says_the_same` and a phrase that goes over the end of a line are
//! all found.

use std::collections::HashMap;
use std::ops::Range;

use crate::source::Source;

/// Where a word is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum In {
    /// In names, comments, texts and documents, and in the names of files.
    Everything,
    /// In names alone, because its plain meaning is good English; and in the names of files.
    Names,
    /// As the whole name of a type. What is called so somewhere else is something else.
    Types,
}

/// What is out, where, and what to write instead.
const OUT: &[(&str, In, &str)] = &[
    ("whoever", In::Everything, "the source, client or caller"),
    ("somebody", In::Everything, "the source, client or caller"),
    ("nobody", In::Everything, "no source, client or caller"),
    ("there be", In::Everything, "the subject first"),
    ("is to be had", In::Everything, "the subject first"),
    ("behind so many", In::Everything, "the octets after N"),
    ("passage", In::Everything, "transaction"),
    ("passages", In::Everything, "transactions"),
    ("told", In::Types, "LoggedReply, or the reply itself"),
    ("shortcut", In::Everything, "fast path"),
    ("look closer", In::Everything, "take the slow path"),
    ("looks closer", In::Everything, "takes the slow path"),
    ("the whole way", In::Everything, "the slow path"),
    ("glance", In::Everything, "packed settings"),
    ("says the same", In::Names, "same content"),
    ("desk", In::Everything, "DnsblService, or what it is"),
    ("findings", In::Types, "Listings, or what was found"),
    ("asking", In::Names, "query"),
    ("held against", In::Everything, "checked against"),
    ("has something in it", In::Everything, "is non-empty"),
    ("have something in them", In::Everything, "are non-empty"),
    ("stretch", In::Everything, "range"),
    ("stretches", In::Everything, "ranges"),
    ("verdict is given", In::Everything, "a verdict is added"),
    ("verdicts are given", In::Everything, "verdicts are added"),
    ("give a verdict", In::Everything, "add a verdict"),
    ("gives a verdict", In::Everything, "adds a verdict"),
    ("take back", In::Everything, "remove"),
    ("takes back", In::Everything, "removes"),
    ("taken back", In::Everything, "removed"),
    ("took back", In::Everything, "removed"),
    ("taking back", In::Everything, "removing"),
    ("what cannot be read", In::Everything, "an invalid line"),
    ("gate", In::Types, "worker, process or contestant"),
    ("outcome", In::Types, "a name that says of what"),
    ("answer", In::Types, "a name that says of what"),
    ("source", In::Types, "a name that says of what"),
];

/// Types that have the bare name by right: there is one such thing, and the field calls it so.
const TYPES_KEPT: &[(&str, &str)] = &[
    // The source address of a packet, and a file of source code.
    ("ebpf/common/src/packet.rs", "Source"),
    ("tests/tests/tidy/source.rs", "Source"),
];

/// Files and directories with texts that need not follow: this table.
const EXCEPT: &[&str] = &["tests/tests/tidy/words.rs"];

/// A word of a text.
struct Word {
    /// In lower case.
    text: String,
    /// The bytes that it takes.
    at: Range<usize>,
}

/// Every word of a file that is out.
pub(crate) fn check(path: &str, text: &str) -> Vec<String> {
    if EXCEPT.contains(&path) {
        return Vec::new();
    }
    let is_rust = path.ends_with(".rs");
    let mut faults = phrases(path, text, In::Everything);
    faults.extend(phrases(path, path, In::Everything));
    if is_rust {
        let code = Source::new(path, text).code;
        faults.extend(phrases(path, &code, In::Names));
        faults.extend(phrases(path, path, In::Names));
        faults.extend(types(path, &code));
    }
    faults.sort_unstable();
    faults.dedup();
    faults
}

/// The phrases of the table that are out at such a place.
fn phrases(path: &str, text: &str, place: In) -> Vec<String> {
    let words = split(text);
    let mut table: HashMap<&str, Vec<(Vec<&str>, &str)>> = HashMap::new();
    for (phrase, _, instead) in OUT.iter().filter(|(_, is_out, _)| *is_out == place) {
        let phrase: Vec<&str> = phrase.split(' ').collect();
        table.entry(phrase[0]).or_default().push((phrase, instead));
    }
    let mut faults = Vec::new();
    for (index, word) in words.iter().enumerate() {
        for (phrase, instead) in table.get(&*word.text).into_iter().flatten() {
            let found = words.get(index..index + phrase.len()).unwrap_or_default();
            let is_phrase = found
                .iter()
                .map(|word| &*word.text)
                .eq(phrase.iter().copied());
            if is_phrase && is_joined(text, found) && !is_user(text, word) {
                faults.push(fault(path, text, word.at.start, &phrase.join(" "), instead));
            }
        }
    }
    faults
}

/// Declarations of types whose whole name is out.
fn types(path: &str, code: &str) -> Vec<String> {
    let declares = ["struct", "enum", "type", "trait", "union"];
    let mut faults = Vec::new();
    let mut before = "";
    for name in code.split(|c: char| !c.is_alphanumeric() && c != '_') {
        let is_kept = TYPES_KEPT.contains(&(path, name));
        if declares.contains(&before) && !is_kept {
            let out = OUT
                .iter()
                .find(|(word, is_out, _)| *is_out == In::Types && name.eq_ignore_ascii_case(word));
            if let Some((_, _, instead)) = out {
                // Both point into the code.
                let at = name.as_ptr().addr() - code.as_ptr().addr();
                faults.push(fault(path, code, at, name, instead));
            }
        }
        if !name.is_empty() {
            before = name;
        }
    }
    faults
}

fn fault(path: &str, text: &str, at: usize, phrase: &str, instead: &str) -> String {
    let line = text[..at].matches('\n').count() + 1;
    format!("{path}:{line}: \"{phrase}\" is out: write {instead}")
}

/// The words of a text: runs of letters, also the parts of a name in any case. The names of metrics
/// are skipped: dashboards have them.
fn split(text: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        if c.is_alphabetic() {
            let end = at + c.len_utf8();
            match words.last_mut() {
                Some(word) if word.at.end == at && !(before.is_lowercase() && c.is_uppercase()) => {
                    word.at.end = end;
                    word.text.extend(c.to_lowercase());
                }
                _ => words.push(Word {
                    text: c.to_lowercase().collect(),
                    at: at..end,
                }),
            }
        }
        before = c;
    }
    words.retain(|word| !is_metric(text, word));
    words
}

/// Whether a word is a part of the name of a metric.
fn is_metric(text: &str, word: &Word) -> bool {
    let name = |c: char| c.is_ascii_lowercase() || c == '_';
    let front = &text[..word.at.start];
    let begin = front.trim_end_matches(name).len();
    text[begin..].starts_with("portcullis_")
}

/// Whether nothing but spaces, the ends of lines and the marks of comments is between words. Within
/// a name that is an underscore, or nothing.
fn is_joined(text: &str, words: &[Word]) -> bool {
    let is_joint = |c: char| c.is_whitespace() || "/!_\\".contains(c);
    words.windows(2).all(|pair| {
        let between = &text[pair[0].at.end..pair[1].at.start];
        between.chars().all(is_joint)
    })
}

/// Whether this is the user of that name, as it is written in a configuration or for a command.
fn is_user(text: &str, word: &Word) -> bool {
    let (front, behind) = (&text[..word.at.start], &text[word.at.end..]);
    let is_quoted = front.ends_with(['"', '`', '\'']) && behind.starts_with(['"', '`', '\'', '\\']);
    let is_named = front.ends_with("user ") || front.ends_with("permission denied for ");
    word.text == "nobody" && (is_quoted || is_named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_out(path: &str, text: &str) {
        assert_eq!(check(path, text).len(), 1, "{path}: {text}");
    }

    #[track_caller]
    fn assert_good(path: &str, text: &str) {
        assert_eq!(check(path, text), Vec::<String>::new(), "{path}: {text}");
    }

    #[test]
    fn a_word_is_found_in_comments_names_texts_and_documents() {
        assert_out("a.rs", "// Whoever calls this waits.");
        assert_out("a.rs", "let nobody = 1;");
        assert_out("a.rs", "fn f() -> NextPassage {}");
        assert_out("a.rs", "const GLANCE_MAX: u8 = 1;");
        assert_out("a.rs", "warn!(\"somebody else reads\");");
        assert_out("a.md", "A desk for questions.");
        assert_out("gateway/src/worker/passage.rs", "");
        assert_good("a.rs", "// Whatever passes.\nlet desktop = \"nobodys\";");
    }

    #[test]
    fn a_phrase_is_found_over_the_end_of_a_line_and_in_any_case() {
        assert_out("a.rs", "/// A source is held\n    /// against a list.");
        assert_out("a.rs", "text(\"it is held \\\n    against it\");");
        assert_out("a.rs", "fn says_the_same() {}");
        assert_out("a.rs", "enum Reply { SaysTheSame }");
        assert_good("a.rs", "// It is held. Against that stands another.");
        assert_good("a.rs", "f(held, against);");
    }

    #[test]
    fn a_good_word_is_out_only_as_a_name() {
        assert_out("a.rs", "mod asking;");
        assert_out("gateway/src/control/dnsbl/asking.rs", "");
        assert_good(
            "a.rs",
            "// The error of asking the kernel, as the caller is told.",
        );
        assert_out("a.rs", "pub(crate) enum Outcome<T> { A(T) }");
        assert_out("a.rs", "struct Gate;");
        assert_good("a.rs", "struct GateRecord;\nfn outcome() -> SendResult {}");
        assert_good("ebpf/common/src/packet.rs", "pub struct Source([u32; 5]);");
    }

    #[test]
    fn the_user_of_that_name_and_the_names_of_metrics_may_stay() {
        assert_good("a.md", "Set `user = \"nobody\"` or `nobody`.");
        assert_good("a.rs", "let a = \"user = \\\"nobody\\\"\\n\";");
        assert_good("a.rs", "let a = \"user nobody nogroup;\";");
        assert_good("a.rs", "text.family(\"portcullis_glance_total\");");
    }

    #[test]
    fn a_fault_says_where_it_is_and_what_to_write() {
        let faults = check("a.rs", "//! A.\n\nstruct Desk;\n");
        assert_eq!(
            faults,
            ["a.rs:3: \"desk\" is out: write DnsblService, or what it is"]
        );
    }
}
