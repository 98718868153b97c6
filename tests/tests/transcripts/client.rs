//! Plays a client transcript: calls the client's commands, passes the next hop's lines in, and
//! compares octets and events.

use std::collections::VecDeque;

use portcullis_smtp::client::{Client, ClientEvent, Extensions, MailCommand, Sent};
use portcullis_smtp::data::Stuffer;
use portcullis_smtp::envelope::Ret;
use portcullis_smtp::reply::Reply;
use portcullis_smtp::sasl::Mechanism;
use portcullis_tests::transcript::{self, Case, Line};

pub(crate) fn play_every_way(case: &Case) -> Result<(), String> {
    for octet_by_octet in [false, true] {
        Player::default()
            .play(case, octet_by_octet)
            .map_err(|error| format!("  {error}"))?;
    }
    Ok(())
}

#[derive(Default)]
struct Player {
    client: Client,
    stuffer: Stuffer,
    kept: Vec<u8>,
    out: Vec<u8>,
    events: VecDeque<String>,
}

impl Player {
    fn play(mut self, case: &Case, octet_by_octet: bool) -> Result<(), String> {
        for line in &case.lines {
            self.line(line, octet_by_octet)
                .map_err(|error| format!("line {}: {error}", line.number))?;
        }
        if !self.out.is_empty() || !self.events.is_empty() {
            return Err(format!(
                "left over: {:?}, {:?}",
                self.out.escape_ascii().to_string(),
                self.events
            ));
        }
        Ok(())
    }

    fn line(&mut self, line: &Line, octet_by_octet: bool) -> Result<(), String> {
        let octets = || line.octets().map_err(|error| format!("{error:#}"));
        match line.key.as_str() {
            "S" => {
                let input = octets()?;
                let size = if octet_by_octet {
                    1
                } else {
                    input.len().max(1)
                };
                input.chunks(size).for_each(|piece| self.take(piece));
            }
            "C" => {
                let expected = octets()?;
                if !self.out.starts_with(&expected) {
                    return Err(format!(
                        "written is {:?}",
                        self.out.escape_ascii().to_string()
                    ));
                }
                self.out.drain(..expected.len());
            }
            "R" => {
                let expected = String::from_utf8_lossy(&octets()?)
                    .trim_end_matches("\r\n")
                    .to_owned();
                match self.events.pop_front() {
                    Some(event) if event == expected => {}
                    other => return Err(format!("expected {expected:?}, came {other:?}")),
                }
            }
            "do" => self.act(&line.text)?,
            "owed" if line.text == self.client.replies_owed().to_string() => {}
            "owed" => return Err(format!("{} replies are owed", self.client.replies_owed())),
            "maysend" if line.text == self.client.may_send().to_string() => {}
            "takesmail" if line.text == self.client.takes_transaction().to_string() => {}
            "takes" => {
                let (path, expected) = line.text.split_once(' ').ok_or("takes: ADDRESS true")?;
                if expected != self.client.takes_recipient(path).to_string() {
                    return Err(format!("it is not so that {path} is taken: {expected}"));
                }
            }
            "offers" if line.text == offers(self.client.extensions()) => {}
            "offers" => return Err(format!("it offers {:?}", offers(self.client.extensions()))),
            key => return Err(format!("{key:?} is no key, or it is not so")),
        }
        Ok(())
    }

    fn take(&mut self, piece: &[u8]) {
        self.kept.extend_from_slice(piece);
        loop {
            let (used, event) = self.client.handle(&self.kept);
            let event = match event {
                ClientEvent::NeedInput => None,
                ClientEvent::Reply { to, reply } => Some(format!("{} {}", name(to), show(&reply))),
                ClientEvent::Unsolicited(reply) => Some(format!("unsolicited {}", show(&reply))),
                ClientEvent::Malformed => Some("malformed".to_owned()),
            };
            self.kept.drain(..used);
            match event {
                None => return,
                Some(event) if event == "malformed" => {
                    // It stays so; once is enough here.
                    if self.events.back() != Some(&event) {
                        self.events.push_back(event);
                    }
                    return;
                }
                Some(event) => self.events.push_back(event),
            }
        }
    }

    fn act(&mut self, text: &str) -> Result<(), String> {
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut words = rest.split(' ');
        let first = words.next().unwrap_or("");
        let words: Vec<&str> = words.collect();
        let value = |name: &str| {
            words
                .iter()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let (client, out) = (&mut self.client, &mut self.out);
        match verb {
            "ehlo" => client.ehlo(first, out),
            "helo" => client.helo(first, out),
            "mail" => {
                let ret = value("ret").map(|ret| {
                    if ret == "full" {
                        Ret::Full
                    } else {
                        Ret::Headers
                    }
                });
                let mail = MailCommand {
                    path: first,
                    size: value("size").and_then(|size| size.parse().ok()),
                    body_8bit: words.contains(&"8bit"),
                    smtputf8: words.contains(&"utf8"),
                    ret,
                    envelope_id: value("envid"),
                };
                client.mail(&mail, out);
            }
            "rcpt" => client.rcpt(first, value("notify"), value("orcpt"), out),
            "data" => client.data(out),
            "body" => self
                .stuffer
                .write(rest.replace("\\r\\n", "\r\n").as_bytes(), out),
            "dot" => client.end_of_data(&mut self.stuffer, out),
            "bdat" => {
                let length = first.parse().map_err(|_| "bdat LENGTH [last]")?;
                client.bdat(length, words.contains(&"last"), out);
            }
            "starttls" => client.starttls(out),
            "tls" => client.secured(),
            "auth" => {
                let mechanism = Mechanism::from_name(first.as_bytes()).ok_or("no mechanism")?;
                let initial = rest.split_once(' ').map(|(_, initial)| initial);
                let initial = initial.map(transcript::octets).transpose();
                let initial = initial.map_err(|error| format!("{error:#}"))?;
                client.auth(mechanism, initial.as_deref(), out);
            }
            "response" => client.auth_response(rest.as_bytes(), out),
            "cancel" => client.auth_cancel(out),
            "xclient" => client.xclient(&format!(" {rest}"), out),
            "rset" => client.rset(out),
            "quit" => client.quit(out),
            _ => return Err(format!("do: {verb:?} is no command")),
        }
        Ok(())
    }
}

fn name(sent: Sent) -> String {
    format!("{sent:?}").to_ascii_lowercase()
}

fn show(reply: &Reply<'_>) -> String {
    let enhanced = reply
        .enhanced
        .map_or(String::new(), |code| format!(" [{code}]"));
    format!("{}{enhanced} {}", reply.code, reply.text.replace('\n', "|"))
}

fn offers(extensions: &Extensions) -> String {
    let Extensions {
        pipelining,
        size,
        size_max,
        eight_bit_mime,
        smtputf8,
        chunking,
        dsn,
        enhanced_status_codes,
        starttls,
        auth,
        recipients_max,
        transactions_max,
        recipient_domains_max,
    } = *extensions;
    let flags = [
        (pipelining, "pipelining"),
        (size, "size"),
        (eight_bit_mime, "8bitmime"),
        (smtputf8, "smtputf8"),
        (chunking, "chunking"),
        (dsn, "dsn"),
        (enhanced_status_codes, "enhanced"),
        (starttls, "starttls"),
    ];
    let mut words: Vec<String> = flags
        .iter()
        .filter(|(offered, _)| *offered)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    words.extend(auth.iter().map(|it| format!("auth={}", it.name())));
    words.extend(size_max.map(|size| format!("size={size}")));
    words.extend(recipients_max.map(|recipients| format!("rcptmax={recipients}")));
    words.extend(transactions_max.map(|transactions| format!("mailmax={transactions}")));
    words.extend(recipient_domains_max.map(|domains| format!("rcptdomainmax={domains}")));
    words.join(" ")
}
