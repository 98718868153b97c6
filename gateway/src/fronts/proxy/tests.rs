//! What one side writes the other reads, and what a next hop gets octet for octet. The table of
//! headers is `tests/fronts/proxy.txt`.

use proptest::prelude::*;

use super::*;

fn client(client: &str, server: &str) -> Header {
    let [client, server] = [client, server].map(|text| text.parse().expect("an address"));
    Header::Client(Endpoints::new(client, server).expect("an address of a client"))
}

fn v1(header: &Header) -> Vec<u8> {
    let mut out = Vec::new();
    write_v1(header, &mut out);
    out
}

fn v2(header: &Header) -> Vec<u8> {
    let mut out = Vec::new();
    write_v2(header, &mut out);
    out
}

#[test]
fn a_text_header_is_the_line_of_the_specification() {
    let header = client("192.168.0.1:56324", "192.168.0.11:25");
    assert_eq!(
        v1(&header),
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 25\r\n"
    );
    let header = client("[2001:db8::1]:56324", "[2001:db8::25]:25");
    assert_eq!(
        v1(&header),
        b"PROXY TCP6 2001:db8::1 2001:db8::25 56324 25\r\n"
    );
    assert_eq!(v1(&Header::Local), b"PROXY UNKNOWN\r\n");
}

#[test]
fn a_binary_header_has_the_octets_of_the_specification() {
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let with = |rest: &[u8]| [signature, rest].concat();
    let header = client("192.0.2.1:50000", "198.51.100.1:25");
    let rest = b"\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x01\xc3\x50\x00\x19";
    assert_eq!(v2(&header), with(rest));
    assert_eq!(v2(&Header::Local), with(b"\x20\x00\x00\x00"));
    assert_eq!(v2(&Header::Unknown), with(b"\x21\x00\x00\x00"));
    let header = v2(&client("[2001:db8::1]:50000", "[2001:db8::25]:25"));
    assert_eq!(header[12..16], *b"\x21\x21\x00\x24");
    assert_eq!(header.len(), 16 + 36);
}

#[test]
fn a_header_names_the_client_even_if_the_server_is_of_the_other_family() {
    let header = client("192.0.2.1:50000", "[2001:db8::25]:25");
    assert_eq!(v1(&header), b"PROXY TCP4 192.0.2.1 0.0.0.0 50000 25\r\n");
    let header = client("[2001:db8::1]:50000", "198.51.100.1:25");
    assert_eq!(v1(&header), b"PROXY TCP6 2001:db8::1 :: 50000 25\r\n");
    assert_eq!(v2(&header)[12..16], *b"\x21\x21\x00\x24");
}

#[test]
fn an_ipv4_client_that_is_written_as_ipv6_is_ipv4() {
    let header = client("[::ffff:192.0.2.1]:50000", "[::ffff:198.51.100.1]:25");
    assert_eq!(header, client("192.0.2.1:50000", "198.51.100.1:25"));
}

fn endpoints() -> impl Strategy<Value = Header> {
    let of = |client: IpAddr, server: IpAddr, ports: (u16, u16)| {
        let client = SocketAddr::new(client, ports.0);
        Endpoints::new(client, SocketAddr::new(server, ports.1))
    };
    let v4 = any::<([u8; 4], [u8; 4], (u16, u16))>();
    let v6 = any::<([u8; 16], [u8; 16], (u16, u16))>();
    let v4 = v4.prop_map(move |(client, server, ports)| of(client.into(), server.into(), ports));
    let v6 = v6.prop_map(move |(client, server, ports)| of(client.into(), server.into(), ports));
    let endpoints = prop_oneof![v4, v6];
    endpoints.prop_filter_map("no client", |it| it.ok().map(Header::Client))
}

proptest! {
    #[test]
    fn what_is_written_is_read_in_any_pieces_and_the_rest_is_left(
        header in endpoints(),
        cut in 0..200usize,
        rest in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        for written in [v1(&header), v2(&header)] {
            let octets = [written.as_slice(), &rest].concat();
            let cut = cut.min(written.len() - 1);
            let mut reader = Reader::default();
            prop_assert!(reader.is_empty());
            prop_assert_eq!(reader.read(&octets[..cut]), Ok(None));
            let taken = written.len() - cut;
            prop_assert_eq!(reader.read(&octets[cut..]), Ok(Some((header, taken))));
        }
    }
}
