//! Changes of the user file as text, line by line: comments, order and what others wrote stay.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::users::{Line, checked_name, random_secret};

/// What a new file begins with.
const HEADER: &str = "\
# The users of the gate: NAME password=ARGON2 [scram=SCRAM-KEYS] [senders=ADDRESSES,DOMAINS]
# `portcullis user` changes it. A reload of the gate reads it again.
";

/// What a line of a user says beside the name.
#[derive(Debug, Default)]
pub struct Fields {
    /// An argon2 hash, as [`PasswordHash::create`](super::PasswordHash::create) writes it.
    pub password: Option<String>,
    /// SCRAM keys; `Some(None)` takes them out.
    pub scram: Option<Option<String>>,
    /// A list with commas; `Some(None)` takes it out.
    pub senders: Option<Option<String>>,
}

/// Adds a user at the end. A file without a secret gets one.
///
/// # Errors
/// There is a user of this name, or the fields make no good line.
pub fn add(text: &str, name: &str, fields: &Fields) -> Result<String, String> {
    let name = checked_name(name)?;
    if let Some(line) = find(text, &name) {
        return Err(format!("{name} is a user already, in line {}", line + 1));
    }
    let mut new = if text.trim().is_empty() {
        HEADER.to_owned()
    } else {
        text.to_owned()
    };
    if !new.is_empty() && !new.ends_with('\n') {
        new.push('\n');
    }
    if !text
        .lines()
        .any(|line| line.trim_start().starts_with("secret="))
    {
        let secret = random_secret().map_err(|error| format!("no random octets: {error}"))?;
        new += &format!("secret={}\n", BASE64.encode(&*secret));
    }
    new += &changed(&name, fields)?;
    new.push('\n');
    Ok(new)
}

/// Replaces what the fields have, and leaves the rest of the user's line.
///
/// # Errors
/// There is no user of this name, or the fields make no good line.
pub fn change(text: &str, name: &str, fields: &Fields) -> Result<String, String> {
    let at = find_known(text, name)?;
    replace(text, at, |line| {
        changed(line, fields).map(|line| line + "\n")
    })
}

/// Takes a user out.
///
/// # Errors
/// There is no user of this name.
pub fn remove(text: &str, name: &str) -> Result<String, String> {
    let at = find_known(text, name)?;
    replace(text, at, |_| Ok(String::new()))
}

fn find_known(text: &str, name: &str) -> Result<usize, String> {
    let name = checked_name(name)?;
    find(text, &name).ok_or_else(|| format!("there is no user {name}"))
}

/// The line of a user, counted from 0; a line with another fault is found as well.
fn find(text: &str, name: &str) -> Option<usize> {
    text.lines().position(|line| {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        checked_name(first).is_ok_and(|found| *found == *name)
    })
}

fn replace(
    text: &str,
    at: usize,
    new: impl FnOnce(&str) -> Result<String, String>,
) -> Result<String, String> {
    let mut new = Some(new);
    let mut result = String::with_capacity(text.len());
    for (number, line) in text.split_inclusive('\n').enumerate() {
        match new.take_if(|_| number == at) {
            Some(new) => result += &new(line.trim_end_matches(['\n', '\r']))?,
            None => result += line,
        }
    }
    Ok(result)
}

/// A line with these fields in place of those that it has.
fn changed(line: &str, fields: &Fields) -> Result<String, String> {
    let mut words: Vec<String> = line.split_ascii_whitespace().map(str::to_owned).collect();
    let password = fields.password.clone().map(Some);
    let changes = [
        ("password=", password.as_ref()),
        ("scram=", fields.scram.as_ref()),
        ("senders=", fields.senders.as_ref()),
    ];
    for (key, value) in changes {
        let Some(value) = value else { continue };
        let at = words.iter().position(|word| word.starts_with(key));
        match (value, at) {
            (Some(value), Some(at)) => words[at] = format!("{key}{value}"),
            (Some(value), None) => words.push(format!("{key}{value}")),
            (None, Some(at)) => drop(words.remove(at)),
            (None, None) => {}
        }
    }
    let line = words.join(" ");
    match Line::parse(&line)? {
        Line::User(_) => Ok(line),
        _ => Err("this makes no line of a user".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Users;
    use super::*;

    const HASH: &str = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$\
        U4mvDVC1ZVFlcTkq0rYrwqCpp0r3ADM3QkLVG0vu0wM";

    fn fields() -> Fields {
        Fields {
            password: Some(HASH.to_owned()),
            ..Fields::default()
        }
    }

    #[test]
    fn a_new_file_gets_a_header_and_a_secret_and_a_second_user_no_second_one() {
        let text = add("", "Alice", &fields()).unwrap();
        assert!(
            text.starts_with("# The users") && text.contains("\nsecret="),
            "{text}"
        );
        assert!(
            text.ends_with(&format!("\nalice password={HASH}\n")),
            "{text}"
        );
        let text = add(&text, "bob", &fields()).unwrap();
        assert_eq!(text.matches("secret=").count(), 1);
        assert_eq!(Users::parse(&text).unwrap().len(), 2);
        assert_eq!(
            add(&text, "ALICE", &fields()).unwrap_err(),
            "alice is a user already, in line 4"
        );
    }

    #[test]
    fn a_change_leaves_all_other_lines_and_fields_as_they_are() {
        let before = format!(
            "# one\r\nsecret=AAAAAAAAAAAAAAAAAAAAAA==\n\
            alice password={HASH} senders=a@b.example\n\n# two\nbob password={HASH}"
        );
        let dear = HASH.replace("t=1", "t=2");
        let password = Some(dear.clone());
        let after = change(
            &before,
            "alice",
            &Fields {
                password,
                ..Fields::default()
            },
        )
        .unwrap();
        assert_eq!(after, before.replacen(HASH, &dear, 1));
        let senders = Some(None);
        let after = change(
            &before,
            "alice",
            &Fields {
                senders,
                ..Fields::default()
            },
        )
        .unwrap();
        assert_eq!(after, before.replace(" senders=a@b.example", ""));
        let after = remove(&before, "BOB").unwrap();
        assert_eq!(after, before.split("bob").next().unwrap());
        // The last line had no end.
        let after = add(&before, "carol", &fields()).unwrap();
        assert!(after.ends_with(&format!("\nbob password={HASH}\ncarol password={HASH}\n")));
    }

    #[test]
    fn a_change_that_would_make_a_bad_line_is_refused() {
        let text = add("", "alice", &fields()).unwrap();
        for name in ["#x", "a=b", "a b", "", "secret=x"] {
            assert!(add(&text, name, &fields()).is_err(), "{name:?}");
        }
        let senders = Some(Some("x y".to_owned()));
        assert!(
            change(
                &text,
                "alice",
                &Fields {
                    senders,
                    ..fields()
                }
            )
            .is_err()
        );
        assert!(add(&text, "bob", &Fields::default()).is_err());
        assert_eq!(
            remove(&text, "carol").unwrap_err(),
            "there is no user carol"
        );
    }
}
