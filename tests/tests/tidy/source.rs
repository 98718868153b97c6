//! A Rust file taken apart into its code and its comments, so that a rule about words is not broken
//! by text about them.
//!
//! String and character literals belong to neither. This is a scanner of a page, not a parser: what
//! it has to know of Rust is where a literal and a comment end. Rejected: `syn`, which drops the
//! comments.

/// A file of the repository.
pub(crate) struct Source {
    /// From the top of the repository, with slashes.
    pub(crate) path: String,
    /// As it is.
    pub(crate) text: String,
    /// The text with comments and literals blanked; every character is on the line where it was.
    pub(crate) code: String,
    /// The comments alone, likewise.
    pub(crate) comments: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let mut scanner = Scanner {
            rest: text,
            code: String::with_capacity(text.len()),
            comments: String::new(),
        };
        scanner.run();
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code: scanner.code,
            comments: scanner.comments,
        }
    }

    /// The code that is not for tests: up to the module under `#[cfg(test)]`, which by custom is
    /// the last.
    pub(crate) fn shipped_code(&self) -> &str {
        let end = self.code.find("#[cfg(test)]").unwrap_or(self.code.len());
        &self.code[..end]
    }
}

/// The numbers, from 1, of the lines on which this stands as a whole word (or path) of its own.
pub(crate) fn lines_with(text: &str, word: &str) -> Vec<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.lines()
        .enumerate()
        .filter(|(_, line)| {
            line.match_indices(word).any(|(start, _)| {
                let before = line[..start].chars().next_back();
                let after = line[start + word.len()..].chars().next();
                !before.is_some_and(is_word) && !after.is_some_and(is_word)
            })
        })
        .map(|(index, _)| index + 1)
        .collect()
}

#[derive(Clone, Copy)]
enum Part {
    Code,
    Comment,
    Literal,
}

struct Scanner<'a> {
    rest: &'a str,
    code: String,
    comments: String,
}

impl Scanner<'_> {
    fn run(&mut self) {
        while let Some(first) = self.rest.chars().next() {
            let in_word = self
                .code
                .ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if self.rest.starts_with("//") {
                self.take(
                    self.rest.find('\n').unwrap_or(self.rest.len()),
                    Part::Comment,
                );
            } else if self.rest.starts_with("/*") {
                self.take(block_comment_len(self.rest), Part::Comment);
            } else if let Some(len) = raw_string_len(self.rest).filter(|_| !in_word) {
                self.take(len, Part::Literal);
            } else if first == '"' {
                self.take(quoted_len(self.rest, '"'), Part::Literal);
            } else if let Some(len) = char_len(self.rest) {
                self.take(len, Part::Literal);
            } else {
                self.take(first.len_utf8(), Part::Code);
            }
        }
    }

    fn take(&mut self, len: usize, part: Part) {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        for c in taken.chars() {
            let blank = if c == '\n' { '\n' } else { ' ' };
            self.code
                .push(if matches!(part, Part::Code) { c } else { blank });
            self.comments.push(if matches!(part, Part::Comment) {
                c
            } else {
                blank
            });
        }
    }
}

fn block_comment_len(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let here = &text[at..];
        if here.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += here.chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// `r"..."`, `br#"..."#` and the like.
fn raw_string_len(text: &str) -> Option<usize> {
    let after_prefix = ["br", "cr", "r"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))?;
    let hashes = after_prefix.len() - after_prefix.trim_start_matches('#').len();
    let body = after_prefix[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", &after_prefix[..hashes]);
    let body_len = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(text.len() - body.len() + body_len)
}

fn quoted_len(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return at + c.len_utf8();
        }
    }
    text.len()
}

/// `'a'` and `'\n'`, but not the lifetime `'a`.
fn char_len(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let first = body.chars().next()?;
    let is_char = first == '\\' || body[first.len_utf8()..].starts_with('\'');
    is_char.then(|| quoted_len(text, '\''))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_split(text: &str, code: &str, comments: &str) {
        let source = Source::new("x.rs", text);
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&source.code), code, "code of {text}");
        assert_eq!(squeeze(&source.comments), comments, "comments of {text}");
        assert_eq!(source.code.lines().count(), text.lines().count());
    }

    #[test]
    fn comments_and_literals_are_told_from_code() {
        assert_split("let a = 1; // unsafe\nb", "let a = 1; b", "// unsafe");
        assert_split("a /* x /* y */ z */ b", "a b", "/* x /* y */ z */");
        assert_split(r#"f("// not \" a comment") g"#, "f( ) g", "");
        assert_split("f(r#\"quote \" inside\"#) g", "f( ) g", "");
        assert_split("f(br\"\\\") g", "f( ) g", "");
        assert_split(
            r"match c { '\'' => 1, '/' => 2, _ => 3 }",
            "match c { => 1, => 2, _ => 3 }",
            "",
        );
        assert_split("fn f<'a>(x: &'a str) // y", "fn f<'a>(x: &'a str)", "// y");
        assert_split("for\"x\"", "for", "");
        assert_split("// no end", "", "// no end");
        assert_split("\"no end", "", "");
    }

    #[test]
    fn a_word_inside_of_another_is_not_that_word() {
        let text = "unsafe_code\nfoo(unsafe)\nmyunsafe unsafe";
        assert_eq!(lines_with(text, "unsafe"), [2, 3]);
        assert_eq!(lines_with("Instant::now()", "Instant::now"), [1]);
    }

    #[test]
    fn tests_are_not_shipped() {
        let source = Source::new(
            "x.rs",
            "fn a() {}\n#[cfg(test)]\nmod tests { use std::fs; }",
        );
        assert!(!source.shipped_code().contains("fs"));
    }
}
