//! Draws what `tenure top` shows, as rows of text. Nothing depends on colors.

use std::time::{Duration, SystemTime};

use anstyle::{AnsiColor, Style};
use tokio::time::Instant;

use super::{
    columns::{Column, table},
    state::{Followed, State},
};
use crate::{
    elections::{Change, Outage, TrackedElection},
    text::{clipped, escaped, padded, short_duration, shortened, width, wrapped},
    waiting,
};

/// How long a notice is shown.
const NOTICE_DURATION: Duration = Duration::from_secs(20);
/// How many rows an outage, or a notice, takes at most.
const MAX_TEXT_ROWS: usize = 3;
/// With fewer rows than this, the changes of all elections are not shown.
const MIN_ROWS_WITH_CHANGES: usize = 10;
/// The mark of the selected election, and that of others.
const MARKS: [&str; 2] = ["> ", "  "];

const ELECTIONS: [Column; 6] = [
    Column { header: "ELECTION", is_number: false, can_shrink: true, importance: None },
    Column { header: "LEADER", is_number: false, can_shrink: true, importance: None },
    Column { header: "SINCE", is_number: true, can_shrink: false, importance: Some(4) },
    Column { header: "WAITING", is_number: true, can_shrink: false, importance: Some(2) },
    Column { header: "TOKEN", is_number: true, can_shrink: false, importance: Some(3) },
    Column { header: "SESSION", is_number: false, can_shrink: false, importance: Some(1) },
];

const CANDIDATES: [Column; 6] = [
    Column { header: "#", is_number: true, can_shrink: false, importance: None },
    Column { header: "CANDIDATE", is_number: false, can_shrink: true, importance: None },
    Column { header: "TOKEN", is_number: true, can_shrink: false, importance: Some(3) },
    Column { header: "AGE", is_number: true, can_shrink: false, importance: Some(2) },
    Column { header: "SESSION", is_number: false, can_shrink: false, importance: Some(1) },
    Column { header: "VALUE", is_number: false, can_shrink: true, importance: Some(4) },
];

/// The styles of a terminal with colors, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Styles {
    title: Style,
    header: Style,
    selected: Style,
    vacant: Style,
    outage: Style,
    notice: Style,
}

impl Styles {
    pub(crate) fn new(has_colors: bool) -> Self {
        let if_wanted = |style: Style| if has_colors { style } else { Style::new() };
        Self {
            title: if_wanted(Style::new().bold()),
            header: if_wanted(Style::new().dimmed()),
            selected: if_wanted(Style::new().invert()),
            vacant: if_wanted(AnsiColor::Yellow.on_default()),
            outage: if_wanted(AnsiColor::Red.on_default().bold()),
            notice: if_wanted(Style::new().bold()),
        }
    }
}

/// How much there is to draw on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
}

/// Draws all rows. Returns them with the number of elections in sight.
pub(crate) fn draw(state: &mut State, size: Size, now: Instant, styles: Styles) -> (Vec<String>, usize) {
    let Size { columns, rows } = size;
    let mut drawn = vec![styled(styles.title, &title(state, columns))];
    if let Some(outage) = &state.snapshot.outage {
        let text = outage_text(&state.store, outage, now);
        let lines = wrapped(&text, columns, MAX_TEXT_ROWS.min(rows / 4).max(1));
        drawn.extend(lines.iter().map(|line| styled(styles.outage, line)));
    }
    let bottom = bottom(state, size, now, styles);
    let space = rows.saturating_sub(drawn.len() + bottom.len());
    let (mut body, in_sight) = match &state.followed {
        Some(followed) => (one(state, followed, columns, space, now, styles), 0),
        None => all(state, columns, space, now, styles),
    };
    body.resize(space, String::new());
    drawn.append(&mut body);
    drawn.extend(bottom);
    drawn.truncate(rows);
    (drawn, in_sight)
}

fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

fn title(state: &State, columns: usize) -> String {
    let snapshot = &state.snapshot;
    let prefix = if state.prefix.is_empty() { String::new() } else { format!("  {}*", state.prefix) };
    let shown = snapshot.elections.len();
    let count = match snapshot.is_truncated {
        true => format!("{shown} of {} elections", snapshot.total),
        false if shown == 1 => "1 election".to_owned(),
        false => format!("{shown} elections"),
    };
    let right = format!("{count}  {}", snapshot.read_at.map(time_of_day).unwrap_or_default());
    let left = format!("{}{prefix}", state.store);
    let space = columns.saturating_sub(width(&right) + 2);
    // On a narrow terminal the store alone.
    if space < 16 {
        return clipped(&left, columns);
    }
    format!("{}  {right}", padded(&clipped(&left, space), space, false))
}

fn outage_text(store: &str, outage: &Outage, now: Instant) -> String {
    let lasts = short_duration(now.saturating_duration_since(outage.since));
    let error = outage.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    format!("no answer from {store} for {lasts}{error}; {}", waiting::ADVICE)
}

/// A question or a notice, and the keys.
fn bottom(state: &State, size: Size, now: Instant, styles: Styles) -> Vec<String> {
    let Size { columns, rows } = size;
    let max_rows = MAX_TEXT_ROWS.min(rows / 4).max(1);
    let (text, style) = match (&state.question, &state.notice) {
        (Some(question), _) => {
            let id = escaped(&question.leader.id);
            (format!("ask {id} to resign from {}? y or n", question.election), styles.notice)
        }
        (None, Some(notice)) if now.saturating_duration_since(notice.at) < NOTICE_DURATION => {
            (notice.text.clone(), styles.notice)
        }
        _ => (String::new(), Style::new()),
    };
    let mut drawn: Vec<_> =
        wrapped(&text, columns, max_rows).iter().map(|line| styled(style, line)).collect();
    if drawn.is_empty() {
        drawn.push(String::new());
    }
    let keys = match (&state.question, &state.followed) {
        (Some(_), _) => "y ask to resign   n do not",
        (None, Some(_)) => "esc back   r resign   q quit",
        (None, None) => "up/down select   enter follow   r resign   q quit",
    };
    drawn.push(styled(styles.header, &clipped(keys, columns)));
    drawn
}

/// All elections, and below them the last changes.
fn all(
    state: &mut State,
    columns: usize,
    space: usize,
    now: Instant,
    styles: Styles,
) -> (Vec<String>, usize) {
    let snapshot = std::sync::Arc::clone(&state.snapshot);
    let elections = &snapshot.elections;
    let changes = if space < MIN_ROWS_WITH_CHANGES { 0 } else { (space / 4).clamp(2, 8) };
    // The header of the table; an empty row and the header of the changes.
    let in_sight = space.saturating_sub(1 + if changes == 0 { 0 } else { changes + 2 });
    let last_first = elections.len().saturating_sub(in_sight);
    let at_least = (state.selected + 1).saturating_sub(in_sight);
    state.first_row = state.first_row.clamp(at_least, state.selected.max(at_least)).min(last_first);

    let mark_width = width(MARKS[0]);
    let cells: Vec<_> = elections.iter().map(|tracked| election_row(tracked, now)).collect();
    let (header, rows) = table(ELECTIONS, &cells, columns.saturating_sub(mark_width));
    let mut drawn = vec![styled(styles.header, &clipped(&format!("{}{header}", MARKS[1]), columns))];
    if elections.is_empty() {
        drawn.push(clipped("  no election has a candidate", columns));
    }
    for (number, row) in rows.iter().enumerate().skip(state.first_row).take(in_sight) {
        let is_selected = number == state.selected;
        let text = format!("{}{row}", MARKS[usize::from(!is_selected)]);
        let text = padded(&clipped(&text, columns), if is_selected { columns } else { 0 }, false);
        let is_vacant = elections[number].election.leader().is_none();
        let style = match (is_selected, is_vacant) {
            (true, _) => styles.selected,
            (false, true) => styles.vacant,
            (false, false) => Style::new(),
        };
        drawn.push(styled(style, &text));
    }
    if changes > 0 {
        drawn.resize(space - changes - 1, String::new());
        let hidden = elections.len().saturating_sub(state.first_row + in_sight);
        let below = if hidden == 0 { String::new() } else { format!("  ({hidden} more elections below)") };
        drawn.push(styled(styles.header, &clipped(&format!("  LAST CHANGES{below}"), columns)));
        drawn.extend(change_rows(snapshot.changes.iter(), changes, columns, true));
    }
    (drawn, in_sight)
}

fn election_row(tracked: &TrackedElection, now: Instant) -> [String; 6] {
    let election = &tracked.election;
    let leader = election.leader();
    [
        election.name.to_string(),
        leader.map_or_else(|| "(nobody)".to_owned(), |leader| escaped(&leader.id)),
        since(tracked, now),
        election.waiting().to_string(),
        leader.and_then(|leader| leader.token).map_or_else(|| "-".to_owned(), |token| token.to_string()),
        leader.map_or_else(|| "-".to_owned(), |leader| escaped(&leader.session)),
    ]
}

/// For how long this leader was seen: at least, if its beginning was not.
fn since(tracked: &TrackedElection, now: Instant) -> String {
    let mark = if tracked.start_observed { "" } else { ">" };
    format!("{mark}{}", short_duration(now.saturating_duration_since(tracked.since)))
}

/// The election that is followed: its leader, its candidates and its changes.
fn one(
    state: &State,
    followed: &Followed,
    columns: usize,
    space: usize,
    now: Instant,
    styles: Styles,
) -> Vec<String> {
    let mut drawn = vec![clipped(&format!("election  {}", followed.name), columns)];
    let current = state.current();
    let leader = current.and_then(|current| current.election.leader());
    let since = current.map(|current| since(current, now)).unwrap_or_default();
    match (leader, current) {
        (Some(leader), _) => {
            let token = leader.token.map_or_else(|| "-".to_owned(), |token| token.to_string());
            let (id, value) = (escaped(&leader.id), escaped(&leader.value_lossy()));
            drawn
                .push(clipped(&format!("leader    {}", shortened(&id, columns.saturating_sub(10))), columns));
            drawn.push(clipped(&format!("since     {since}"), columns));
            drawn.push(clipped(&format!("token     {token}"), columns));
            drawn.push(clipped(&format!("session   {}", escaped(&leader.session)), columns));
            drawn.push(clipped(&format!("value     {value}"), columns));
        }
        (None, Some(_)) => {
            drawn.push(styled(styles.vacant, &clipped(&format!("leader    (nobody) for {since}"), columns)));
        }
        (None, None) => drawn.push(clipped("leader    not known: too many elections to read", columns)),
    }
    let candidates = current.map(|current| &current.election.candidates[..]).unwrap_or_default();
    let count = current.map_or(0, |current| current.election.candidate_count);
    let cells: Vec<_> = candidates
        .iter()
        .enumerate()
        .map(|(index, candidate)| {
            [
                (index + 1).to_string(),
                escaped(&candidate.id),
                candidate.token.map_or_else(|| "-".to_owned(), |token| token.to_string()),
                candidate.age.map_or_else(|| "-".to_owned(), short_duration),
                escaped(&candidate.session),
                escaped(&candidate.value_lossy()),
            ]
        })
        .collect();
    // The candidates get two thirds of what is left, the changes the rest.
    let left = space.saturating_sub(drawn.len() + 4);
    let in_sight = candidates.len().min((left * 2 / 3).max(1));
    let (header, rows) = table(CANDIDATES, &cells, columns);
    drawn.push(String::new());
    let hidden = count - in_sight.min(count);
    let header = if hidden == 0 { header } else { format!("{header}  ({hidden} more)") };
    drawn.push(styled(styles.header, &clipped(&header, columns)));
    drawn.extend(rows.iter().take(in_sight).map(|row| clipped(row, columns)));
    drawn.push(String::new());
    drawn.push(styled(styles.header, &clipped("CHANGES", columns)));
    let changes = space.saturating_sub(drawn.len());
    drawn.extend(change_rows(followed.changes.iter(), changes, columns, false));
    drawn.truncate(space);
    drawn
}

fn change_rows<'a>(
    changes: impl Iterator<Item = &'a Change>,
    max_rows: usize,
    columns: usize,
    with_election: bool,
) -> Vec<String> {
    let indent = if with_election { MARKS[1] } else { "" };
    let mut drawn: Vec<_> = changes
        .take(max_rows)
        .map(|change| {
            let text = change_text(change, columns.saturating_sub(width(indent)), with_election);
            clipped(&format!("{indent}{text}"), columns)
        })
        .collect();
    if drawn.is_empty() && max_rows > 0 {
        drawn.push(clipped(&format!("{indent}none yet"), columns));
    }
    drawn
}

/// `14:03:01Z billing: b leads with token 18, after a`. If that does not fit, without the token, and with shortened names.
fn change_text(change: &Change, columns: usize, with_election: bool) -> String {
    let text = |max: usize, with_token: bool| {
        let name = |name: &str| shortened(name, max);
        let election =
            if with_election { format!("{}: ", name(change.election.as_str())) } else { String::new() };
        let leader = match &change.leader {
            None => "nobody leads".to_owned(),
            Some(term) => {
                let token = term.token.filter(|_| with_token).map(|token| format!(" with token {token}"));
                format!("{} leads{}", name(&escaped(&term.id)), token.unwrap_or_default())
            }
        };
        let previous = match &change.previous {
            None => String::new(),
            Some(term) => format!(", after {}", name(&escaped(&term.id))),
        };
        format!("{} {election}{leader}{previous}", time_of_day(change.time))
    };
    let shorter = (8..columns).rev().map(|max| text(max, false));
    let mut texts = [text(usize::MAX, true)].into_iter().chain(shorter);
    texts.find(|text| width(text) <= columns).unwrap_or_else(|| text(8, false))
}

/// The time of day in UTC.
fn time_of_day(time: SystemTime) -> String {
    let time = humantime::format_rfc3339_seconds(time).to_string();
    time.split_once('T').map_or_else(|| time.clone(), |(_, time)| time.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        elections::Snapshot,
        top::{
            keys::Key,
            state::tests::{reading, snapshot, state},
        },
    };

    fn drawn(state: &mut State, columns: usize, rows: usize) -> Vec<String> {
        draw(state, Size { columns, rows }, Instant::now(), Styles::new(false)).0
    }

    fn example() -> State {
        let before =
            reading(&[("billing", &[("host-1-4711-0123456789abcdef", 17)]), ("reports", &[("r", 2)])]);
        let after = reading(&[(
            "billing",
            &[("host-2-4712-fedcba9876543210", 18), ("host-1-4711-0123456789abcdef", 19)],
        )]);
        state(&[before, after])
    }

    #[test]
    fn all_elections_are_shown_at_80_columns() {
        let drawn = drawn(&mut example(), 80, 14);
        let expected = [
            "etcd 10.0.0.1:2379                                        2 elections  00:00:00Z",
            "  ELECTION  LEADER                       SINCE  WAITING  TOKEN  SESSION",
            "> billing   host-2-4712-fedcb…876543210     0s        1     18  7587a3b1c2d4e5f6",
            "  reports   (nobody)                        0s        0      -  -",
        ];
        assert_eq!(drawn[..4].iter().map(|row| row.trim_end()).collect::<Vec<_>>(), expected);
        assert!(
            drawn.iter().any(|row| row.contains("billing: host-2") && row.contains(", after host-1")),
            "{drawn:#?}"
        );
        assert!(drawn.iter().any(|row| row.contains("reports: nobody leads, after r")), "{drawn:#?}");
        assert_eq!(drawn[13], "up/down select   enter follow   r resign   q quit");
    }

    #[test]
    fn every_size_is_filled_and_no_row_is_too_long() {
        for columns in 1..100 {
            for rows in 1..40 {
                for follows in [false, true] {
                    let mut state = example();
                    let outage =
                        Outage { since: Instant::now(), error: Some("connection refused".to_owned()) };
                    state.update(Arc::new(Snapshot { outage: Some(outage), ..(*state.snapshot).clone() }));
                    if follows {
                        state.press(Key::Enter, 10);
                    }
                    state.press(Key::Letter('r'), 10);
                    let drawn = drawn(&mut state, columns, rows);
                    assert_eq!(drawn.len(), rows, "{columns}x{rows}");
                    assert!(drawn.iter().all(|row| width(row) <= columns), "{columns}x{rows}: {drawn:#?}");
                }
            }
        }
    }

    #[test]
    fn the_selected_election_is_always_in_sight() {
        let names: Vec<_> = (10..60).map(|number| format!("e{number}")).collect();
        let elections: Vec<_> = names.iter().map(|name| (name.as_str(), &[("x", 1)][..])).collect();
        let mut state = state(&[reading(&elections)]);
        let keys =
            [Key::Down, Key::Down, Key::PageDown, Key::End, Key::Up, Key::PageUp, Key::PageUp, Key::Home];
        for rows in [5, 12, 24] {
            for key in keys {
                let (_, page) =
                    draw(&mut state, Size { columns: 80, rows }, Instant::now(), Styles::new(false));
                state.press(key, page);
                let drawn = drawn(&mut state, 80, rows);
                let selected: Vec<_> = drawn.iter().filter(|row| row.starts_with("> ")).collect();
                let name = state.current().unwrap().election.name.to_string();
                assert!(selected.len() == 1 && selected[0].contains(&name), "{key:?}: {drawn:#?}");
            }
        }
    }

    #[test]
    fn an_outage_says_how_long_what_happened_and_what_to_do() {
        let mut state = example();
        let since = Instant::now() - Duration::from_secs(72);
        let outage = Outage { since, error: Some("connection refused".to_owned()) };
        state.update(Arc::new(Snapshot { outage: Some(outage), ..(*state.snapshot).clone() }));
        let drawn = drawn(&mut state, 80, 24);
        let text = drawn[1..3].iter().map(|row| row.trim()).collect::<Vec<_>>().join(" ");
        assert_eq!(
            text,
            "no answer from etcd 10.0.0.1:2379 for 1m12s: connection refused; `tenure doctor` examines the store"
        );
        assert!(drawn[4].contains("billing"), "what was read last stays: {drawn:#?}");
    }

    /// Other processes write ids, values and names of sessions.
    #[test]
    fn control_characters_of_others_are_escaped() {
        let hostile = "a\u{1b}[2Jb\r\nc\u{202e}d";
        let mut state =
            state(&[reading(&[("e", &[(hostile, 1)])]), reading(&[("e", &[("x", 2), (hostile, 3)])])]);
        for _ in 0..2 {
            let drawn = drawn(&mut state, 100, 30).join("\n");
            assert!(!drawn.contains(['\u{1b}', '\r', '\u{202e}']), "{drawn:?}");
            assert!(drawn.contains("\\u{1b}"), "{drawn}");
            state.press(Key::Enter, 10);
        }
    }

    #[test]
    fn a_terminal_with_colors_gets_the_same_text() {
        let plain = drawn(&mut example(), 80, 24);
        let size = Size { columns: 80, rows: 24 };
        let (colored, _) = draw(&mut example(), size, Instant::now(), Styles::new(true));
        let stripped: Vec<_> =
            colored.iter().map(|row| anstream::adapter::strip_str(row).to_string()).collect();
        assert_eq!(stripped, plain);
        assert!(colored.join("").contains("\u{1b}[7m"));
    }

    #[test]
    fn too_many_elections_are_said_to_be_too_many() {
        let mut truncated = reading(&[("a", &[("x", 1)])]);
        (truncated.total, truncated.is_truncated) = (1234, true);
        let mut state = state(&[truncated]);
        assert!(drawn(&mut state, 80, 24)[0].contains("1 of 1234 elections"));
        state.press(Key::Enter, 10);
        state.update(snapshot(&[reading(&[])]));
        assert!(drawn(&mut state, 80, 24).iter().any(|row| row.contains("not known")));
    }
}
