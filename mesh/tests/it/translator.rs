//! An address translator (NAT) as homes have one, in user space: the kernel at hand has none.
//!
//! Pure: it rewrites packets and keeps its tables. Not here: where packets come from and go to.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The first port of the outside; none is that of an inside.
const FIRST_PORT: u16 = 40_000;

/// Which ports of the outside one inside gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// One, whomever it sends to.
    ForAll,
    /// Another one for each whom it sends to.
    ForEach,
}

type Port = (u8, u16);

/// Gives what goes out a port of the outside, and lets in only what comes from where that port has sent to.
pub(crate) struct Translator {
    outside: Ipv4Addr,
    mapping: Mapping,
    next: u16,
    ports: HashMap<(u8, SocketAddrV4, Option<SocketAddrV4>), u16>,
    insides: HashMap<Port, SocketAddrV4>,
    sent: HashSet<(Port, SocketAddrV4)>,
}

impl Translator {
    pub(crate) fn new(outside: Ipv4Addr, mapping: Mapping) -> Self {
        let (ports, insides, sent) = Default::default();
        Self { outside, mapping, next: FIRST_PORT, ports, insides, sent }
    }

    /// Whether a packet goes out, rewritten.
    pub(crate) fn let_out(&mut self, packet: &mut [u8]) -> bool {
        let Some(Ends { protocol, from, to }) = Ends::of(packet) else { return false };
        let key = (protocol, from, (self.mapping == Mapping::ForEach).then_some(to));
        let port = *self.ports.entry(key).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        self.insides.insert((protocol, port), from);
        self.sent.insert(((protocol, port), to));
        Ends { protocol, from: SocketAddrV4::new(self.outside, port), to }.write(packet);
        true
    }

    /// Whether a packet gets in, rewritten.
    pub(crate) fn let_in(&self, packet: &mut [u8]) -> bool {
        let Some(Ends { protocol, from, to }) = Ends::of(packet) else { return false };
        let port = (protocol, to.port());
        let Some(inside) = self.insides.get(&port).filter(|_| self.sent.contains(&(port, from))) else {
            return false;
        };
        Ends { protocol, from, to: *inside }.write(packet);
        true
    }
}

/// Where a packet of IPv4 comes from and goes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    protocol: u8,
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
}

impl Ends {
    /// Those of a whole packet of UDP or TCP.
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        let header = header_length(packet)?;
        let protocol = packet[9];
        let is_known = matches!(protocol, TCP | UDP);
        let at = |place: usize| u16::from_be_bytes([packet[place], packet[place + 1]]);
        let ip = |place: usize| {
            Ipv4Addr::from_octets([packet[place], packet[place + 1], packet[place + 2], packet[place + 3]])
        };
        let [from, to] =
            [(12, header), (16, header + 2)].map(|(host, port)| SocketAddrV4::new(ip(host), at(port)));
        is_known.then_some(Self { protocol, from, to })
    }

    /// Writes them into a packet that has others, with its sums.
    fn write(&self, packet: &mut [u8]) {
        let Some(header) = header_length(packet) else { return };
        for (end, host, port) in [(self.from, 12, header), (self.to, 16, header + 2)] {
            packet[host..host + 4].copy_from_slice(&end.ip().octets());
            packet[port..port + 2].copy_from_slice(&end.port().to_be_bytes());
        }
        packet[10..12].fill(0);
        let sum = checksum(sum_of(&packet[..header]));
        packet[10..12].copy_from_slice(&sum);
        let place = header + if self.protocol == UDP { 6 } else { 16 };
        packet[place..place + 2].fill(0);
        // One of UDP may go without.
        if self.protocol == TCP {
            let length = (packet.len() - header) as u32;
            let pseudo = sum_of(&packet[12..20]) + u32::from(TCP) + length;
            let sum = checksum(pseudo + sum_of(&packet[header..]));
            packet[place..place + 2].copy_from_slice(&sum);
        }
    }
}

/// How long the header of a packet of IPv4 is, in front of one of UDP or TCP.
fn header_length(packet: &[u8]) -> Option<usize> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    (packet[0] >> 4 == 4 && header >= 20 && packet.len() >= header + 8).then_some(header)
}

fn sum_of(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum()
}

fn checksum(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: &str, to: &str) -> Vec<u8> {
        let mut packet = vec![0; 29];
        (packet[0], packet[9]) = (0x45, UDP);
        let end = |text: &str| text.parse().expect("an address");
        Ends { protocol: UDP, from: end(from), to: end(to) }.write(&mut packet);
        packet
    }

    #[test]
    fn answer_gets_in_and_nothing_else_does() {
        for mapping in [Mapping::ForAll, Mapping::ForEach] {
            let mut translator = Translator::new(Ipv4Addr::new(198, 51, 100, 1), mapping);
            let mut seen = Vec::new();
            for to in ["203.0.113.1:1", "203.0.113.2:2"] {
                let mut out = packet("10.9.0.2:4290", to);
                assert!(translator.let_out(&mut out));
                let from = Ends::of(&out).expect("a packet of UDP").from;
                let mut answer = packet(to, &from.to_string());
                assert!(translator.let_in(&mut answer));
                assert_eq!(answer, packet(to, "10.9.0.2:4290"));
                for other in ["203.0.113.1:2", "203.0.113.3:1"] {
                    assert!(!translator.let_in(&mut packet(other, &from.to_string())), "{other}");
                }
                seen.push(from);
            }
            assert_eq!(seen[0] == seen[1], mapping == Mapping::ForAll);
            assert!(!translator.let_in(&mut packet("203.0.113.1:1", "198.51.100.1:9")));
        }
    }
}
