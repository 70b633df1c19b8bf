//! Unusual names: of foreign entries, and of elections.

use tenure::{Elector, Error};

use crate::{is_printable, promptly};

/// Names that people and programs may choose. Except for `-1` and `0x7f`, none is valid for an election.
pub(crate) fn unusual() -> Vec<String> {
    let mut names: Vec<String> = [
        " ",
        "a b",
        "a/b",
        "../e",
        "..",
        ".",
        "%2F",
        "a%2Fb",
        "a\\b",
        "a\nb",
        "a\r\nERROR forged",
        "\t",
        "a\0b",
        "\u{1b}[31mred\u{1b}[0m",
        "\u{7f}",
        "\u{85}",
        "\u{202e}gnp.exe",
        "\u{2028}",
        "\u{feff}",
        "e\u{301}",
        "ä",
        "名前",
        "😀",
        "{}",
        "{0}",
        "%s%n",
        "'; DROP TABLE e;--",
        "$(reboot)",
        "<script>",
        "~withdrawn",
        "~doctor",
        "*",
        "?",
        "#",
        "0x7f",
        "-1",
        "+1",
        "١٢٣",
    ]
    .map(str::to_owned)
    .into();
    names.push("x".repeat(8000));
    names
}

/// Asserts that invalid names of elections are refused at once with a printable error, and that unusual valid ones work.
pub(crate) async fn check_election_names(elector: &dyn Elector) {
    for name in unusual().iter().filter(|name| !["-1", "0x7f"].contains(&name.as_str())) {
        let refused = promptly("refusing", elector.campaign(name)).await.unwrap_err();
        assert!(
            matches!(refused, Error::InvalidElection(_)) && !refused.is_retryable(),
            "{name:?}: {refused}"
        );
        assert!(is_printable(&refused.to_string()), "{refused}");
        assert!(matches!(elector.leader(name).await, Err(Error::InvalidElection(_))));
        assert!(matches!(elector.candidates(name).await, Err(Error::InvalidElection(_))));
    }
    for name in [
        "-1",
        "0x7f",
        "-",
        "_",
        "...",
        "..a",
        "a.",
        "--help",
        "NUL",
        "zookeeper",
        "latch-0000000001",
        &"x".repeat(255),
    ] {
        let leadership = promptly("leading", elector.campaign(name)).await.unwrap();
        let leader = promptly("asking", elector.leader(name)).await.unwrap().unwrap();
        assert_eq!(leader.id, elector.candidate_id().to_string(), "{name}");
        promptly("resigning", leadership.resign()).await.unwrap();
    }
}
