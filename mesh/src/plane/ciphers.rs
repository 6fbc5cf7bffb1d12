//! The ciphers of TLS and QUIC, in the fastest form that this machine has.
//!
//! Two libraries are at hand. With AVX-512 aws-lc is the faster; on other x86 machines ring, which knows
//! how to use VAES without it, is about twice as fast at AES-128-GCM. What crosses the wire is the same.
//! Not here: certificates.

use rustls::SupportedCipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};

/// What the data plane speaks: AES first, which is 1.4 times as fast as ChaCha20 on common hardware. All but the
/// ciphers is ring's: aws-lc gathers chance from the processor's jitter, which takes 30 ms at each start.
pub(super) fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    // quinn derives its first keys from AES-128, so it must be among them.
    provider.cipher_suites = if is_ring_faster() { of_ring() } else { of_aws_lc() }.to_vec();
    provider
}

/// Sets the ciphers of TLS that other libraries set up in this process. It may be called again.
pub fn install_ciphers() {
    // Two libraries are compiled in, so rustls does not choose one by itself. Whoever came first has won.
    let _ = aws_lc_rs::default_provider().install_default();
}

fn of_aws_lc() -> [SupportedCipherSuite; 3] {
    use aws_lc_rs::cipher_suite as suite;
    [suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384, suite::TLS13_CHACHA20_POLY1305_SHA256]
}

fn of_ring() -> [SupportedCipherSuite; 3] {
    use ring::cipher_suite as suite;
    [suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384, suite::TLS13_CHACHA20_POLY1305_SHA256]
}

#[cfg(target_arch = "x86_64")]
fn is_ring_faster() -> bool {
    let has_avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl");
    is_x86_feature_detected!("vaes") && is_x86_feature_detected!("vpclmulqdq") && !has_avx512
}

#[cfg(not(target_arch = "x86_64"))]
fn is_ring_faster() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_libraries_offer_the_same_ciphers_in_the_same_order_and_all_of_them_to_quic() {
        let names = |suites: [SupportedCipherSuite; 3]| suites.map(|suite| suite.suite());
        assert_eq!(names(of_ring()), names(of_aws_lc()));
        let quic = |suite: &SupportedCipherSuite| suite.tls13().is_some_and(|suite| suite.quic.is_some());
        assert!(of_ring().iter().chain(&of_aws_lc()).all(quic));
    }
}
