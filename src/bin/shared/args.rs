//! Conversion of command lines in the style of Go's `flag` package for clap.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command, CommandFactory, Parser};

/// Parses the command line. Exits for `--help` and `--version`, and with code 2 after a usage error.
pub(crate) fn parse<A: Parser>() -> A {
    A::parse_from(normalize(A::command(), std::env::args_os()))
}

/// Parses these arguments.
pub(crate) fn try_parse<A: Parser + CommandFactory>(
    args: impl IntoIterator<Item = OsString>,
) -> Result<A, clap::Error> {
    A::try_parse_from(normalize(A::command(), args))
}

/// Rewrites flags in Go's style for clap. Flags in clap's style are unchanged.
///
/// - `-root`, for a known long flag, is `--root` and not `-r -o -o -t`.
/// - A flag with a value takes the next argument, even if that begins with a dash.
/// - A flag with an optional value takes it only behind `=`.
/// - `-v=true` and `--v=1` are `-v`; `-v=false` is dropped.
/// - `--` ends the flags, and `-` is not a flag.
///
/// The first argument is the program's name.
pub(crate) fn normalize(mut command: Command, args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    // Adds --help and --version.
    command.build();
    let mut args = args.into_iter();
    let mut normal: Vec<OsString> = args.next().into_iter().collect();
    while let Some(arg) = args.next() {
        if arg == "--" {
            normal.push(arg);
            normal.extend(args);
            break;
        }
        match Flag::find(&command, &arg) {
            None => normal.push(arg),
            Some(flag) if flag.arg.get_action().takes_values() => match flag.value.clone().or_else(|| {
                let needs = flag.arg.get_num_args().is_none_or(|count| count.min_values() > 0);
                needs.then(|| args.next()).flatten()
            }) {
                Some(value) => normal.push(flag.with(&value)),
                // clap reports the missing value, if one is required.
                None => normal.push(flag.name.into()),
            },
            Some(flag) => match &flag.value {
                None => normal.push(flag.name.into()),
                Some(value) => match boolean(value) {
                    Some(true) => normal.push(flag.name.into()),
                    Some(false) => normal.extend(flag.without_last()),
                    // clap reports that the flag takes no value.
                    None => normal.push(flag.with(value)),
                },
            },
        }
    }
    normal
}

/// A flag on the command line.
struct Flag<'a> {
    arg: &'a Arg,
    /// In clap's style: `--root`, or `-vH` for combined short flags.
    name: String,
    /// The value behind `=`, or right behind a short flag.
    value: Option<OsString>,
}

impl<'a> Flag<'a> {
    /// The known flag that this argument is, if any.
    fn find(command: &'a Command, given: &OsStr) -> Option<Self> {
        let bytes = given.as_encoded_bytes();
        let split = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
        let name = std::str::from_utf8(&bytes[..split]).ok()?;
        let value = tail(given, split + 1);
        let bare = name.strip_prefix("--").or_else(|| name.strip_prefix('-')).filter(|bare| !bare.is_empty())?;
        if let Some(arg) = command.get_arguments().find(|arg| arg.get_long() == Some(bare)) {
            return Some(Self { arg, name: format!("--{bare}"), value });
        }
        if name.starts_with("--") {
            return Self::short(command, bare, value).filter(|flag| flag.name.len() == 2);
        }
        Self::short(command, bare, value)
    }

    /// The flag and a value as one argument.
    fn with(&self, value: &OsStr) -> OsString {
        let mut joined = OsString::from(&self.name);
        joined.push("=");
        joined.push(value);
        joined
    }

    /// The combined short flags before the last one, if there are any.
    fn without_last(&self) -> Option<OsString> {
        let mut shorts = self.name.strip_prefix('-').filter(|shorts| !shorts.starts_with('-'))?.chars();
        shorts.next_back();
        Some(shorts.as_str()).filter(|shorts| !shorts.is_empty()).map(|shorts| format!("-{shorts}").into())
    }

    /// The last of combined short flags: only that may have a value.
    fn short(command: &'a Command, shorts: &str, value: Option<OsString>) -> Option<Self> {
        for (at, short) in shorts.char_indices() {
            let arg = command.get_arguments().find(|arg| arg.get_short() == Some(short))?;
            let end = at + short.len_utf8();
            let name = format!("-{}", &shorts[..end]);
            if arg.get_action().takes_values() && end < shorts.len() {
                // `-Hname`, and `-Hname=value` whose `=` belongs to the value.
                let mut inline = OsString::from(&shorts[end..]);
                if let Some(value) = value {
                    inline.push("=");
                    inline.push(value);
                }
                return Some(Self { arg, name, value: Some(inline) });
            }
            if end == shorts.len() {
                return Some(Self { arg, name, value });
            }
        }
        None
    }
}

/// The part of an argument from `at` on.
#[cfg(unix)]
fn tail(given: &OsStr, at: usize) -> Option<OsString> {
    use std::os::unix::ffi::OsStrExt;
    given.as_bytes().get(at..).map(|tail| OsStr::from_bytes(tail).to_owned())
}

#[cfg(not(unix))]
fn tail(given: &OsStr, at: usize) -> Option<OsString> {
    given.to_str()?.get(at..).map(OsString::from)
}

/// A boolean as Go's `flag` package accepts it.
fn boolean(value: &OsStr) -> Option<bool> {
    match value.to_str()? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser, Debug, PartialEq, Default)]
    #[command(name = "test", version)]
    struct Args {
        #[arg(short, long)]
        verbose: bool,
        #[arg(short, long)]
        quiet: bool,
        #[arg(long)]
        root: Option<String>,
        #[arg(short = 'H', long)]
        header: Vec<String>,
        #[arg(short)]
        only: Option<String>,
        rest: Vec<String>,
    }

    fn parsed(line: &[&str]) -> Result<Args, clap::error::ErrorKind> {
        let args = std::iter::once("test").chain(line.iter().copied()).map(OsString::from);
        try_parse(args).map_err(|error| error.kind())
    }

    fn args(change: impl FnOnce(&mut Args)) -> Result<Args, clap::error::ErrorKind> {
        let mut args = Args::default();
        change(&mut args);
        Ok(args)
    }

    #[test]
    fn both_styles_mean_the_same() {
        for line in [
            &["-root=/x", "-v", "u"][..],
            &["-root", "/x", "-v=true", "u"],
            &["--root=/x", "--verbose", "u"],
            &["--root", "/x", "-verbose", "u"],
            &["u", "-verbose=1", "-root=/x"],
            &["-v=T", "-root=/x", "--", "u"],
            &["--v", "-root=/x", "u"],
            &["--v=true", "-q=false", "-quiet=0", "-root=/x", "u"],
        ] {
            let expected = args(|a| {
                a.verbose = true;
                a.root = Some("/x".into());
                a.rest = vec!["u".into()];
            });
            assert_eq!(parsed(line), expected, "{line:?}");
        }
    }

    #[test]
    fn values_may_begin_with_a_dash() {
        for line in [&["-root", "-v"][..], &["--root", "-v"], &["-root=-v"], &["--root=-v"]] {
            assert_eq!(parsed(line), args(|a| a.root = Some("-v".into())), "{line:?}");
        }
        assert_eq!(parsed(&["-root", "--"]), args(|a| a.root = Some("--".into())));
        assert_eq!(parsed(&["-root", "--root=x"]), args(|a| a.root = Some("--root=x".into())));
        assert_eq!(parsed(&["-root=a=b"]), args(|a| a.root = Some("a=b".into())));
        assert_eq!(parsed(&["-root="]), args(|a| a.root = Some(String::new())));
        assert_eq!(parsed(&["-root", ""]), args(|a| a.root = Some(String::new())));
    }

    #[test]
    fn shorts_combine_and_take_values() {
        let expected = args(|a| {
            a.verbose = true;
            a.header = vec!["-a: b=c".into()];
        });
        for line in [&["-vH", "-a: b=c"][..], &["-v", "-H", "-a: b=c"], &["-vH=-a: b=c"], &["-vH-a: b=c"]] {
            assert_eq!(parsed(line), expected, "{line:?}");
        }
        let two = args(|a| a.header = vec!["a: 1".into(), "b: 2".into()]);
        assert_eq!(parsed(&["-H", "a: 1", "-header", "b: 2"]), two);
        assert_eq!(parsed(&["-only"]), args(|a| a.only = Some("nly".into())));
        assert_eq!(parsed(&["-qv"]), args(|a| (a.quiet, a.verbose) = (true, true)));
        assert_eq!(parsed(&["-qv=false"]), args(|a| a.quiet = true));
    }

    #[test]
    fn single_and_double_dashes() {
        let rest = |rest: &[&str]| args(|a| a.rest = rest.iter().map(|r| (*r).into()).collect());
        assert_eq!(parsed(&["-"]), rest(&["-"]));
        assert_eq!(parsed(&["--", "-v", "-root", "--", "-"]), rest(&["-v", "-root", "--", "-"]));
    }

    #[test]
    fn help_version_and_errors_come_from_clap() {
        use clap::error::ErrorKind::{DisplayHelp, DisplayVersion, InvalidValue, TooManyValues, UnknownArgument};
        for line in [&["-h"][..], &["-help"], &["--help"], &["-vh"]] {
            assert_eq!(parsed(line), Err(DisplayHelp), "{line:?}");
        }
        for line in [&["-V"][..], &["-version"], &["--version"]] {
            assert_eq!(parsed(line), Err(DisplayVersion), "{line:?}");
        }
        assert_eq!(parsed(&["-unknown"]), Err(UnknownArgument));
        assert_eq!(parsed(&["--unknown=1"]), Err(UnknownArgument));
        assert_eq!(parsed(&["-root"]), Err(InvalidValue));
        assert_eq!(parsed(&["-verbose=maybe"]), Err(TooManyValues));
    }

    #[test]
    #[cfg(unix)]
    fn values_that_are_not_unicode_are_kept() {
        use std::os::unix::ffi::OsStringExt;
        let given = OsString::from_vec(b"-root=/\xff".to_vec());
        let normal = normalize(Args::command(), [OsString::from("test"), given]);
        assert_eq!(normal[1], OsString::from_vec(b"--root=/\xff".to_vec()));
    }
}
