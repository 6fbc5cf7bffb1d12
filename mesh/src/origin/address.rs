//! Which addresses are on the internet, and a resolver that gives no others.
//!
//! The check is made on the addresses that are connected to, so a name that leads elsewhere the second time
//! it is asked for gains nothing. Not here: addresses that a URL names itself; `request` asks about those.

use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

/// Whether an address is one of a host on the internet: not this machine's, this network's, or nobody's.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let is_shared = first == 100 && (64..128).contains(&second);
    let is_for_benchmarks = first == 198 && (18..20).contains(&second);
    let is_for_protocols = [first, second, third] == [192, 0, 0];
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || is_shared
        || is_for_benchmarks
        || is_for_protocols
        || first == 0
        || first >= 240)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Addresses that hold one of the older kind lead where that one does.
    let embedded = match segments {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((high, low)),
        [0x2002, high, low, ..] => Some((high, low)),
        _ => None,
    };
    if let Some((high, low)) = embedded {
        return is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    }
    // Of all others, only 2000::/3 is given out.
    segments[0] & 0xe000 == 0x2000
        && !(segments[0] == 0x2001 && (segments[1] < 0x200 || segments[1] == 0xdb8))
}

/// A name that leads to no public address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{host}` leads to {address}, which is no address on the internet")]
pub struct PrivateAddress {
    /// The name.
    pub host: String,
    /// One of the addresses that it leads to.
    pub address: IpAddr,
}

impl PrivateAddress {
    /// The one among the causes of an error.
    pub fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(private) = error.downcast_ref::<Self>() {
                return Some(private.clone());
            }
            cause = error.source();
        }
        None
    }
}

/// Which addresses a name has. Their ports are set by whoever connects.
pub type Lookup = fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

/// Resolves names, and gives the public ones of their addresses.
pub struct PublicResolver(Lookup);

impl PublicResolver {
    /// One that has the addresses from here.
    pub fn new(lookup: Lookup) -> Self {
        Self(lookup)
    }
}

/// The addresses that the system has for a name.
pub fn system_lookup(host: String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
    Box::pin(async move { Ok(lookup_host((host.as_str(), 0)).await?.collect()) })
}

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (host, lookup) = (name.as_str().to_owned(), self.0);
        Box::pin(async move {
            let addresses = lookup(host.clone()).await?;
            Ok(Box::new(only_public(host, addresses)?.into_iter()) as Addrs)
        })
    }
}

fn only_public(
    host: String,
    addresses: Vec<SocketAddr>,
) -> Result<Vec<SocketAddr>, Box<dyn Error + Send + Sync>> {
    let (public, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| is_public(address.ip()));
    match (public.is_empty(), other.first()) {
        (false, _) => Ok(public),
        (true, Some(address)) => Err(PrivateAddress { host, address: address.ip() }.into()),
        (true, None) => Err(io::Error::from(io::ErrorKind::NotFound).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_on_the_internet_are_public() {
        for text in ["8.8.8.8", "100.63.0.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::808:808"] {
            assert!(is_public(text.parse().expect("an address")), "{text}");
        }
        let others = [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::7f00:1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "fc00::1",
            "fe80::1",
            "ff02::1",
        ];
        for text in others {
            assert!(!is_public(text.parse().expect("an address")), "{text}");
        }
    }

    #[test]
    fn name_with_both_kinds_of_address_leads_to_the_public_ones_only() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().expect("an address")).collect()
        };
        let host = || "example.org".to_owned();
        let mixed = only_public(host(), addresses(&["127.0.0.1:0", "8.8.8.8:0"])).expect("one is public");
        assert_eq!(mixed, addresses(&["8.8.8.8:0"]));
        let error = only_public(host(), addresses(&["[::1]:0"])).expect_err("none is public");
        assert!(PrivateAddress::behind(&*error).is_some());
    }
}
