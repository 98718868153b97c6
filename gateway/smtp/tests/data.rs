//! Properties of message content that hold for any content and any split of the input.

use portcullis_smtp::data::{Bounds, Decoded, Decoder, Fault, Framing, Stuffer};
use proptest::collection::vec;
use proptest::prelude::*;

const NO_BOUNDS: Bounds = Bounds {
    size_max: u64::MAX,
    line_length_max: u32::MAX,
};

/// A decoded message.
#[derive(Debug, Default, PartialEq)]
struct Message {
    content: Vec<u8>,
    fault: Option<Fault>,
    /// Octets up to the end of data, that included.
    ended_at: Option<usize>,
}

fn decode(framing: Framing, bounds: &Bounds, pieces: &[&[u8]]) -> Message {
    let mut decoder = Decoder::new(framing);
    let mut message = Message::default();
    let mut before = 0;
    for piece in pieces {
        let mut used = 0;
        loop {
            let (step, decoded) = decoder.decode(bounds, &piece[used..]);
            used += step;
            match decoded {
                Decoded::NeedInput => {
                    assert_eq!(used, piece.len(), "all input is used before more is needed");
                    break;
                }
                Decoded::Content(content) => {
                    assert_eq!(message.fault, None, "nothing is passed on after a fault");
                    message.content.extend_from_slice(content);
                }
                Decoded::Fault(fault) => {
                    assert_eq!(message.fault, None, "a message has one fault");
                    message.fault = Some(fault);
                }
                Decoded::End => {
                    message.ended_at = Some(before + used);
                    return message;
                }
            }
        }
        before += piece.len();
    }
    message
}

/// The definition, slow and simple.
fn decode_by_definition(input: &[u8]) -> Message {
    let line_begun = [b"\r\n", input].concat();
    let end = line_begun
        .windows(5)
        .position(|octets| octets == b"\r\n.\r\n");
    let content = &line_begun[..end.map_or(line_begun.len(), |end| end + 2)];
    let mut message = Message {
        ended_at: end.map(|end| end + 3),
        ..Message::default()
    };
    for (at, &octet) in content.iter().enumerate().skip(2) {
        let line_start = content[..at].ends_with(b"\r\n");
        match octet {
            b'\r' if content.get(at + 1) != Some(&b'\n') => {
                // The last octet so far: a LF may still follow.
                let waits = end.is_none() && at + 1 == content.len();
                message.fault = (!waits).then_some(Fault::BareCarriageReturn);
                return message;
            }
            b'\n' if content[at - 1] != b'\r' => {
                message.fault = Some(Fault::BareLineFeed);
                return message;
            }
            b'.' if line_start => {}
            // Returned together with its LF.
            b'\r' => {}
            b'\n' => message.content.extend_from_slice(b"\r\n"),
            _ => message.content.push(octet),
        }
    }
    message
}

/// Octets with lines, dots and mistakes.
fn octets() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(b"\r\n".to_vec()),
        3 => Just(b".".to_vec()),
        1 => Just(b"\r".to_vec()),
        1 => Just(b"\n".to_vec()),
        1 => Just(b"\0".to_vec()),
        4 => vec(any::<u8>().prop_filter("an ordinary octet", |b| !b"\r\n.".contains(b)), 1..20),
    ];
    vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

/// Content with whole lines.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    let octet = any::<u8>().prop_map(|b| if b"\r\n".contains(&b) { b'.' } else { b });
    let line = prop_oneof![Just(b".".to_vec()), Just(b"..".to_vec()), vec(octet, 0..20)];
    vec(line, 0..20).prop_map(|lines| {
        lines
            .into_iter()
            .flat_map(|line| [line, b"\r\n".to_vec()].concat())
            .collect()
    })
}

/// The input in pieces that end at the marks, modulo its length.
fn cut<'a>(input: &'a [u8], marks: &[usize]) -> Vec<&'a [u8]> {
    let mut marks: Vec<usize> = marks.iter().map(|mark| mark % (input.len() + 1)).collect();
    marks.extend([0, input.len()]);
    marks.sort_unstable();
    marks
        .windows(2)
        .map(|pair| &input[pair[0]..pair[1]])
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn content_comes_through_stuffing_unchanged(
        content in lines(),
        marks in vec(any::<usize>(), 0..8),
        more in vec(any::<usize>(), 0..8),
    ) {
        let mut stuffer = Stuffer::new();
        let mut wire = Vec::new();
        cut(&content, &marks).iter().for_each(|piece| stuffer.write(piece, &mut wire));
        stuffer.finish(&mut wire);
        let expected = Message { ended_at: Some(wire.len()), content, fault: None };
        prop_assert_eq!(decode(Framing::Dots, &NO_BOUNDS, &cut(&wire, &more)), expected);
    }

    #[test]
    fn an_unfinished_last_line_is_finished(content in lines(), rest in "[a-z.]{1,5}") {
        let content = [content, rest.into_bytes()].concat();
        let mut wire = Vec::new();
        let mut stuffer = Stuffer::new();
        stuffer.write(&content, &mut wire);
        stuffer.finish(&mut wire);
        let decoded = decode(Framing::Dots, &NO_BOUNDS, &[&wire]);
        prop_assert_eq!(decoded.content, [content, b"\r\n".to_vec()].concat());
    }

    #[test]
    fn decoding_is_what_its_definition_says(input in octets(), marks in vec(any::<usize>(), 0..8)) {
        let decoded = decode(Framing::Dots, &NO_BOUNDS, &cut(&input, &marks));
        let expected = decode_by_definition(&input);
        // The decoder has not returned a dot or a CR at the end of the input yet.
        prop_assert_eq!(decoded, expected);
    }

    #[test]
    fn bounds_hold_to_the_octet_however_the_input_is_cut(
        input in octets(),
        marks in vec(any::<usize>(), 0..8),
        size_max in 0_u64..100,
        line_length_max in 1_u32..20,
        dots in any::<bool>(),
    ) {
        let bounds = Bounds { size_max, line_length_max };
        let framing = if dots { Framing::Dots } else { Framing::Chunks };
        let whole = decode(framing, &bounds, &[&input]);
        prop_assert!(whole.content.len() as u64 <= size_max);
        for line in whole.content.split(|&b| b == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            prop_assert!(line.len() <= line_length_max as usize);
        }
        prop_assert_eq!(decode(framing, &bounds, &cut(&input, &marks)), whole);
    }

    #[test]
    fn a_chunk_is_content_as_it_stands(content in lines(), marks in vec(any::<usize>(), 0..8)) {
        let decoded = decode(Framing::Chunks, &NO_BOUNDS, &cut(&content, &marks));
        prop_assert_eq!(decoded, Message { content, fault: None, ended_at: None });
    }
}
