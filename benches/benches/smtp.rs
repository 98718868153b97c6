//! What the SMTP crate costs by itself: paths, a whole session with no network, message content
//! both ways.
//!
//! At 80 us of CPU for a session on the wire, the session alone should be nothing that one sees.
//! `cargo bench -p portcullis-benches`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use portcullis_smtp::data::{Bounds, Decoded, Decoder, Framing, Stuffer};
use portcullis_smtp::path::Path;
use portcullis_smtp::server::{Event, Session, Settings};

const PATHS: &[(&str, &str)] = &[
    ("usual", "recipient.name@mail.isp.example"),
    ("quoted", "\"a quoted \\\" name\"@isp.example"),
    ("literal", "postmaster@[IPv6:2001:db8::25]"),
    ("source route", "@a.example,@b.example:user@isp.example"),
];

fn paths(c: &mut Criterion) {
    let mut group = c.benchmark_group("path");
    for &(name, path) in PATHS {
        group.bench_function(name, |b| b.iter(|| Path::parse(black_box(path))));
    }
    group.finish();
}

/// Commands as they arrive, one piece each: of a client that waits for each reply, and of one that
/// pipelines.
fn sessions(c: &mut Criterion) {
    let content = text(
        1024,
        "a line of a message, as long as people write them\r\n",
    );
    let body = [content.as_slice(), b".\r\n"].concat();
    let envelope =
        "MAIL FROM:<sender@client.example>\r\nRCPT TO:<recipient@isp.example>\r\nDATA\r\n";
    let one_by_one: Vec<&[u8]> = [b"HELO client.example\r\n".as_slice()]
        .into_iter()
        .chain(envelope.split_inclusive('\n').map(str::as_bytes))
        .chain([body.as_slice(), b"QUIT\r\n"])
        .collect();
    let pipelined: [&[u8]; 4] = [
        b"EHLO client.example\r\n",
        envelope.as_bytes(),
        &body,
        b"QUIT\r\n",
    ];

    let settings = Settings::new("mx.isp.example");
    let mut group = c.benchmark_group("session of one 1 KiB message");
    for (name, pieces) in [
        ("one by one", one_by_one.as_slice()),
        ("pipelined", &pipelined),
    ] {
        let mut out = Vec::with_capacity(4096);
        group.bench_function(name, |b| {
            b.iter(|| {
                assert!(
                    converse(&settings, pieces, &mut out),
                    "the session ended with QUIT"
                );
            });
        });
    }
    group.finish();
}

/// Accepts everything; whether it came to a QUIT.
fn converse(settings: &Settings, pieces: &[&[u8]], out: &mut Vec<u8>) -> bool {
    let mut session = Session::new();
    session.greet(settings, out);
    session.flushed();
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let step = session.handle(settings, rest, out);
            rest = &rest[step.consumed..];
            match step.event {
                Event::NeedInput => break,
                Event::Quit => return true,
                Event::Body(content) => _ = black_box(content),
                Event::Abort(_) | Event::MessageFault(_) => return false,
                Event::StartTls
                | Event::Handshake
                | Event::Auth { .. }
                | Event::AuthResponse(_)
                | Event::Xclient(_) => return false,
                Event::AwaitingAnswer | Event::Reset | Event::Refused { .. } => {}
                Event::Hello { .. }
                | Event::Mail(_)
                | Event::Rcpt(_)
                | Event::Message
                | Event::MessageEnd { .. } => session.accept(settings, out),
            }
        }
        session.flushed();
        out.clear();
    }
    false
}

/// Whole lines, of about this many octets.
fn text(len: usize, line: &str) -> Vec<u8> {
    line.repeat(len.div_ceil(line.len())).into_bytes()
}

fn content(c: &mut Criterion) {
    let bounds = Bounds {
        size_max: u64::MAX,
        line_length_max: u32::MAX,
    };
    let mut group = c.benchmark_group("content");
    for (name, line) in [
        (
            "lines of 76",
            "VGhpcyBpcyB3aGF0IGFuIGF0dGFjaG1lbnQgbG9va3MgbGlrZTogYmFzZTY0LCA3NiBvY3RldHMu\r\n",
        ),
        ("empty lines", "\r\n"),
        ("dots", ".\r\n"),
    ] {
        let content = text(256 * 1024, line);
        group.throughput(Throughput::Bytes(content.len() as u64));

        let mut stuffed = Vec::with_capacity(2 * content.len());
        group.bench_function(format!("stuff, {name}"), |b| {
            b.iter(|| {
                stuffed.clear();
                let mut stuffer = Stuffer::new();
                stuffer.write(black_box(&content), &mut stuffed);
                stuffer.finish(&mut stuffed);
            });
        });
        group.bench_function(format!("decode, {name}"), |b| {
            b.iter_batched(
                || Decoder::new(Framing::Dots),
                |mut decoder| assert!(decode(&mut decoder, &bounds, &stuffed)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Whether all of it is one good message.
fn decode(decoder: &mut Decoder, bounds: &Bounds, mut input: &[u8]) -> bool {
    loop {
        let (used, decoded) = decoder.decode(bounds, input);
        input = &input[used..];
        match decoded {
            Decoded::Content(content) => _ = black_box(content),
            Decoded::End => return input.is_empty(),
            Decoded::NeedInput | Decoded::Fault(_) => return false,
        }
    }
}

criterion_group!(benches, paths, sessions, content);
criterion_main!(benches);
