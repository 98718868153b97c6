//! Lines end at 100 columns, in code, comments and documents.
//!
//! rustfmt keeps this for code, but not for comments, nor for a statement in which one string
//! literal is too long: that whole statement is then left as it is.

/// Characters of a line.
const COLUMNS_MAX: usize = 100;

/// The lines of a file that are too long.
///
/// In Markdown, tables and fenced blocks are free, and so is a line that is one word (a link cannot
/// be broken).
pub(crate) fn check(path: &str, text: &str) -> Vec<String> {
    let is_markdown = path.ends_with(".md");
    let mut is_fenced = false;
    let mut faults = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let begin = line.trim_start();
        is_fenced ^= is_markdown && begin.starts_with("```");
        let is_free = is_fenced || begin.starts_with('|') || is_one_word(begin);
        let columns = line.chars().count();
        if columns > COLUMNS_MAX && !(is_markdown && is_free) {
            faults.push(format!(
                "{path}:{number}: {columns} columns of {COLUMNS_MAX}"
            ));
        }
    }
    faults
}

/// Whether there is no place to break a line, but behind the mark of a list.
fn is_one_word(line: &str) -> bool {
    let text = line.trim_start_matches(['-', '*']).trim();
    !text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, line: &str) -> usize {
        check(path, &format!("first\n{line}\nlast\n")).len()
    }

    #[test]
    fn a_line_that_is_too_long_is_found_in_code_comments_literals_and_documents() {
        let words = "word ".repeat(20);
        for (path, line) in [
            ("a.rs", format!("// {words}")),
            ("a.rs", format!("let a = \"{words}\";")),
            ("a.rs", format!("// | {words} |")),
            ("a.rs", "x".repeat(101)),
            ("README.md", format!("{words}words")),
        ] {
            assert_eq!(faults(path, &line), 1, "{path}: {line}");
        }
    }

    #[test]
    fn columns_are_characters_and_a_hundred_of_them_fit() {
        assert_eq!(faults("a.rs", &"ä".repeat(100)), 0);
        assert_eq!(faults("a.rs", &"ä".repeat(101)), 1);
    }

    #[test]
    fn tables_fenced_blocks_and_links_of_a_document_are_free() {
        let words = "word ".repeat(30);
        let link = "https://portcullis.example/".repeat(5);
        for line in [
            format!("| {words} |"),
            format!("```text\n{words}\n```"),
            format!("- {link}"),
        ] {
            assert_eq!(faults("README.md", &line), 0, "{line}");
        }
        assert_eq!(faults("README.md", &format!("```\n```\n{words}")), 1);
    }
}
