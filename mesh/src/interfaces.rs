//! The addresses of this machine, so that a listener on all interfaces can say where it is reached.

use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The addresses behind a listening one: itself, or one for each interface where it is a wildcard, the
/// loopback last.
pub fn expand(listening: SocketAddr) -> Vec<SocketAddr> {
    if !listening.ip().is_unspecified() {
        return vec![listening];
    }
    let mut found: Vec<IpAddr> = interface_addresses();
    // A wildcard of IPv6 takes IPv4 as well only where the socket says so; ours do not.
    found.retain(|address| address.is_ipv4() == listening.is_ipv4());
    found.sort_by_key(IpAddr::is_loopback);
    found.into_iter().map(|address| SocketAddr::new(address, listening.port())).collect()
}

/// The addresses of interfaces that are up, without the IPv6 ones that need to name their interface.
fn interface_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let addresses = interfaces
        .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|interface| {
            let address = interface.address?;
            if let Some(address) = address.as_sockaddr_in() {
                return Some(IpAddr::V4(address.ip()));
            }
            let address = address.as_sockaddr_in6()?.ip();
            (!address.is_unicast_link_local()).then_some(IpAddr::V6(address))
        });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_names_the_loopback_last_and_others_name_themselves() {
        let wildcard = expand("0.0.0.0:4288".parse().expect("an address"));
        assert_eq!(wildcard.last(), Some(&"127.0.0.1:4288".parse().expect("an address")));
        let fixed = "192.0.2.7:4288".parse().expect("an address");
        assert_eq!(expand(fixed), [fixed]);
    }
}
