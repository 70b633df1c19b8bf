//! Certificates and keys in PEM. Invalid ones are refused, and no part of a key is printed.

#![no_main]

use futures::FutureExt as _;
use libfuzzer_sys::fuzz_target;
use tenure::{Secret, Tls};

/// What could be a part of a key: a line as long as this, and no shorter one that words have too.
const LONG: usize = 20;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    match Tls::new(text) {
        Ok(tls) => {
            let pem = tls.current().now_or_never().expect("nothing is read from files");
            assert!(text.contains("-----BEGIN"));
            assert_eq!((pem.ca(), pem.identity().is_some()), (text, false));
            shows_no_key(&format!("{tls:?}"), text);
            match tls.with_identity(text, Secret::new(text)) {
                Ok(tls) => {
                    let pem = tls.current().now_or_never().expect("nothing is read from files");
                    let (certificate, key) = pem.identity().expect("it was given");
                    assert_eq!((certificate, key.expose()), (text, text));
                    shows_no_key(&format!("{tls:?}"), text);
                }
                Err(said) => shows_no_key(&said, text),
            }
        }
        Err(said) => shows_no_key(&said, text),
    }
});

fn shows_no_key(said: &str, text: &str) {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| line.len() >= LONG && !line.starts_with("-----") && !line.contains(' '));
    for line in lines {
        assert!(!said.contains(line), "{said}");
    }
}
