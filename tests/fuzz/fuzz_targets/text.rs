#![no_main]

httpfstream_fuzz::target!(text);
