//! Plays a server transcript: passes the client's lines in, and compares replies, events and
//! messages.

use std::cell::RefCell;

use portcullis_smtp::reply::{EnhancedCode, Reply};
use portcullis_smtp::sasl::Mechanism;
use portcullis_smtp::server::{Blame, LongLines, Settings};
use portcullis_tests::checked_session::CheckedSession;
use portcullis_tests::transcript::{Case, Line};

use crate::expect_reply;

/// How many octets at the beginning and at the end of a group are tried as cuts.
const CUTS_MAX: usize = 200;

/// The lines that are sent at once, and all that follows from them.
#[derive(Default)]
struct Exchange {
    line: usize,
    sent: Vec<u8>,
    replies: Vec<String>,
    events: Vec<String>,
    answers: Vec<Planned>,
    /// The replies are not flushed before the next group is passed in.
    hold: bool,
}

/// The kind of event, the answer to it, and the limit that it counts toward.
type Planned = (String, Reply<'static>, Blame);

struct Script {
    implicit_tls: bool,
    settings: Settings,
    exchanges: Vec<Exchange>,
    messages: Vec<Vec<u8>>,
}

/// How the octets of a group are cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Nowhere,
    Everywhere,
    /// One cut, in one group.
    At {
        exchange: usize,
        octet: usize,
    },
}

pub(crate) fn play_every_way(case: &Case) -> Result<(), String> {
    let script = Script::new(case)?;
    let mut cuts = vec![Cut::Nowhere, Cut::Everywhere];
    for (exchange, Exchange { sent, .. }) in script.exchanges.iter().enumerate() {
        let octets = (1..sent.len()).filter(|&at| at < CUTS_MAX || sent.len() - at < CUTS_MAX);
        cuts.extend(octets.map(|octet| Cut::At { exchange, octet }));
    }
    for cut in cuts {
        for late_answers in [false, true] {
            play(&script, cut, late_answers).map_err(|error| {
                format!("  cut {cut:?}, late answers: {late_answers}\n  {error}")
            })?;
        }
    }
    Ok(())
}

impl Script {
    fn new(case: &Case) -> Result<Self, String> {
        let mut script = Self {
            implicit_tls: false,
            settings: Settings::new("mx.example"),
            exchanges: Vec::new(),
            messages: Vec::new(),
        };
        let mut now = Exchange::default();
        let mut key_before = "";
        for line in &case.lines {
            let answered = !now.replies.is_empty() || !now.events.is_empty() || now.hold;
            if matches!(line.key.as_str(), "C" | "A") && answered {
                script.exchanges.push(std::mem::take(&mut now));
            }
            if now.line == 0 {
                now.line = line.number;
            }
            match line.key.as_str() {
                "C" => now.sent.extend(octets(line)?),
                "S" => now.replies.push(line.text.clone()),
                "E" => now.events.push(line.text.clone()),
                "A" => now.answers.push(answer(&line.text)?),
                "hold" => now.hold = true,
                "set" if line.text == "tls on" => script.implicit_tls = true,
                "set" => set(&mut script.settings, &line.text)?,
                "M" => {
                    if key_before != "M" {
                        script.messages.push(Vec::new());
                    }
                    if let Some(message) = script.messages.last_mut() {
                        message.extend(octets(line)?);
                    }
                }
                key => return Err(format!("line {}: {key:?} is no key", line.number)),
            }
            key_before = &line.key;
        }
        script.exchanges.push(now);
        Ok(script)
    }
}

fn octets(line: &Line) -> Result<Vec<u8>, String> {
    line.octets().map_err(|error| format!("{error:#}"))
}

/// `rcpt 550 5.7.1 text`, or `rcpt next-hop 450 4.2.0 text`, or `rcpt unknown 550 5.1.1 text`.
fn answer(text: &str) -> Result<Planned, String> {
    let bad = || format!("no answer: {text:?}");
    let (kind, reply) = text.split_once(' ').ok_or_else(bad)?;
    if reply == "accept" {
        return Ok((kind.to_owned(), Reply::new(0, None, ""), Blame::None));
    }
    let (blame, reply) = match reply.split_once(' ') {
        Some(("next-hop", reply)) => (Blame::None, reply),
        Some(("unknown", reply)) => (Blame::UnknownRecipient, reply),
        _ => (Blame::Client, reply),
    };
    let (code, text) = reply.split_once(' ').unwrap_or((reply, ""));
    let code = code.parse().map_err(|_| bad())?;
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let numbers: Vec<u16> = word
        .split('.')
        .filter_map(|number| number.parse().ok())
        .collect();
    let (enhanced, text) = match numbers[..] {
        [class, subject, detail] => (Some(EnhancedCode(class as u8, subject, detail)), rest),
        _ => (None, text),
    };
    Ok((
        kind.to_owned(),
        Reply::new(code, enhanced, text.replace("\\n", "\n")),
        blame,
    ))
}

fn set(settings: &mut Settings, text: &str) -> Result<(), String> {
    let (name, value) = text.split_once(' ').ok_or("set: NAME VALUE")?;
    let number = || {
        value
            .parse::<u32>()
            .map_err(|error| format!("{text}: {error}"))
    };
    match name {
        "starttls" if value == "on" => settings.starttls = true,
        "auth_without_tls" if value == "on" => settings.auth_without_tls = true,
        "xclient" if value == "on" => settings.xclient = true,
        "auth_required" if value == "on" => settings.auth_required = true,
        "auth" => {
            let names = value.split(' ').map(str::as_bytes);
            settings.mechanisms = names.filter_map(Mechanism::from_name).collect();
        }
        "dsn" if value == "off" => settings.dsn = false,
        "message_size_max" => settings.message_size_max = number()?.into(),
        "recipients_max" => settings.recipients_max = number()?,
        "transactions_max" => settings.transactions_max = number()?,
        "errors_max" => settings.errors_max = number()?,
        "recipients_unknown_max" => settings.recipients_unknown_max = number()?,
        "command_length_max" => settings.command_length_max = number()? as usize,
        "long_lines" if value == "refuse" => settings.long_lines = LongLines::Refuse,
        _ => return Err(format!("set: {name} is no setting")),
    }
    Ok(())
}

fn play(script: &Script, cut: Cut, late_answers: bool) -> Result<(), String> {
    let answers = RefCell::new(Vec::<Planned>::new());
    let policy = |kind: &'static str| {
        let mut answers = answers.borrow_mut();
        let planned = answers.iter().position(|(planned, ..)| planned == kind)?;
        let (_, reply, blame) = answers.remove(planned);
        (reply.code != 0).then_some((reply, blame))
    };
    let mut session = CheckedSession::new(&script.settings, late_answers, Box::new(policy));
    session.implicit_tls = script.implicit_tls;
    for (index, exchange) in script.exchanges.iter().enumerate() {
        answers.borrow_mut().extend_from_slice(&exchange.answers);
        play_exchange(&mut session, exchange, index, cut)
            .map_err(|error| format!("line {}: {error}", exchange.line))?;
    }
    if session.messages == script.messages {
        return Ok(());
    }
    let show = |messages: &[Vec<u8>]| -> Vec<String> {
        messages
            .iter()
            .map(|message| message.escape_ascii().to_string())
            .collect()
    };
    let (found, expected) = (show(&session.messages), show(&script.messages));
    Err(format!("messages {found:?} instead of {expected:?}"))
}

fn play_exchange(
    session: &mut CheckedSession<'_>,
    exchange: &Exchange,
    index: usize,
    cut: Cut,
) -> Result<(), String> {
    if index == 0 && exchange.sent.is_empty() {
        session.greet()?;
    }
    let pieces: Vec<&[u8]> = match cut {
        Cut::Everywhere => exchange.sent.chunks(1).collect(),
        Cut::At {
            exchange: at,
            octet,
        } if at == index => {
            let (front, back) = exchange.sent.split_at(octet);
            vec![front, back]
        }
        _ => vec![&exchange.sent],
    };
    for piece in pieces {
        session.take(piece)?;
    }
    session.settle()?;
    let out = if exchange.hold {
        session.replies()?
    } else {
        session.flushed()?
    };
    let mut written = out.as_str();
    for expected in &exchange.replies {
        expect_reply(&mut written, expected)?;
    }
    if !written.is_empty() {
        return Err(format!("also written: {written:?}"));
    }
    let events = std::mem::take(&mut session.events);
    if events != exchange.events {
        return Err(format!(
            "events {events:?} instead of {:?}",
            exchange.events
        ));
    }
    Ok(())
}
