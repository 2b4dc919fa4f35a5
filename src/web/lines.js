// Renders text as a terminal would, into lines with styles: SGR colours, carriage returns, backspaces, tabs. Escape
// sequences that mean nothing in a log are dropped; one that is split between two chunks is held back until it is
// complete.

// Longer lines are split, in UTF-16 units: finding a position in a line takes time in proportion to its length.
const MAX_LINE = 16384;
// Longer escape sequences are taken for noise.
const MAX_ESCAPE = 4096;
// Colour levels per channel for new styles, by the number of existing styles: it bounds how many styles there can be.
const LEVELS = [[4096, 256], [16384, 6], [Infinity, 2]];
// The cache of SGR changes is cleared after this many.
const MAX_CHANGES = 8192;

const CONTROL = /[\x00-\x1f\x7f-\x9f]/;
const PLAIN = /[^\x00-\x1f\x7f-\x9f]+/y;
// CSI; OSC and other strings, which also end at the end of a line; sequences with intermediates; two characters.
const ESCAPE =
    /\x1b(?:\[([0-?]*)[ -/]*([@-~])|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\|(?=\n|\x1b[^\\]))|[ -/]+[0-~]|[0-OQ-WYZ\\`-~])/y;
const ESCAPE_BEGUN = /\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\n]*\x1b?|[ -/]*)$/y;
// Characters that may not be one column wide.
const ODD = /[\u0300-\u036f\u1100-\u115f\u200b-\u200f\u231a-\u231b\u23e9-\u23f3\u25fd-\u25fe\u2614-\u2615\u2648-\u2653\u267f-\u27bf\u2b1b-\u2b55\u2e80-\ua4cf\uac00-\ud7a3\ud800-\udfff\uf900-\ufaff\ufe00-\ufe6f\uff00-\uff60\uffe0-\uffe6]/;
const NO_WIDTH = /[\u0300-\u036f\u200b-\u200f\ufe00-\ufe0f\p{Mn}]/u;
const TWO_WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\p{Emoji_Presentation}\u{20000}-\u{3fffd}]/u;

const WHITE_AND_BLACK = { 'var(--c0)': '#000', 'var(--c7)': '#eee', 'var(--c15)': '#fff' };

/** Lines of text. `runs` of a line is null, or `[start, style, start, style, …]`. */
export class Lines {
    texts = [];
    runs = [];
    /** Style 0 is the default. */
    styles = [{}];
    #known = new Map([['', 0]]);
    #states = new Map();
    #changes = 0;
    #text = '';
    #runs = null;
    #column = 0;
    #style = 0;
    #state = this.#stateOf({});
    #held = '';

    /** The last line, which has no line feed yet. It is not among `texts` and `runs`. */
    get open() {
        return { text: this.#text, runs: this.#runs };
    }

    /** Adds text. */
    write(chunk) {
        const text = this.#held + chunk;
        this.#held = '';
        let at = 0;
        for (;;) {
            const feed = text.indexOf('\n', at);
            const end = feed < 0 ? text.length : feed;
            // Fast path: most lines have no control characters.
            const stop = feed > at && text.charCodeAt(feed - 1) === 13 ? feed - 1 : end;
            const piece = text.slice(at, stop);
            if (piece && !CONTROL.test(piece)) this.#put(piece);
            else if (piece) this.#controlled(text, at, end);
            if (feed < 0) return;
            this.#feed();
            at = feed + 1;
        }
    }

    /** Ends the last line. There is no more text. */
    end() {
        this.#held = '';
        if (this.#text) this.#feed();
    }

    /** Drops the first lines. */
    drop(count) {
        this.texts = this.texts.slice(count);
        this.runs = this.runs.slice(count);
        this.#forgetChanges(); // Its keys are slices, which keep the whole text of the dropped lines alive.
    }

    #feed() {
        this.texts.push(this.#text);
        this.runs.push(this.#runs?.slice() ?? null); // A copy, since an array that was pushed to has spare capacity.
        this.#text = '';
        this.#runs = null;
        this.#column = 0;
    }

    #controlled(text, at, end) {
        while (at < end) {
            const code = text.charCodeAt(at);
            if (code === 0x1b) {
                at = this.#escape(text, at);
                continue;
            }
            PLAIN.lastIndex = at;
            if (PLAIN.test(text)) {
                // The class holds no line feed, so this never runs past the line.
                this.#put(text.slice(at, PLAIN.lastIndex));
                at = PLAIN.lastIndex;
                continue;
            }
            if (code === 13) this.#column = 0;
            else if (code === 8) this.#column = Math.max(0, this.#column - 1);
            else if (code === 9) this.#tab();
            at++;
        }
    }

    #tab() {
        const to = (Math.floor(this.#column / 8) + 1) * 8;
        if (this.#column >= this.#text.length) this.#put(' '.repeat(to - this.#column));
        else this.#column = to;
    }

    // Handles the escape sequence at `at`. Returns the position behind it.
    #escape(text, at) {
        ESCAPE.lastIndex = at;
        const found = ESCAPE.exec(text);
        if (found) {
            if (found[2]) this.#csi(found[1], found[2]);
            return ESCAPE.lastIndex;
        }
        ESCAPE_BEGUN.lastIndex = at;
        if (ESCAPE_BEGUN.test(text) && text.length - at < MAX_ESCAPE) {
            this.#held = text.slice(at);
            return text.length;
        }
        return at + 1;
    }

    #csi(parameters, final) {
        const count = Math.min(parseInt(parameters, 10) || 0, MAX_LINE);
        if (final === 'm') this.#sgr(parameters);
        // Cursor movements of progress bars.
        else if (final === 'G') this.#column = Math.max(0, count - 1);
        else if (final === 'C') this.#column = Math.min(MAX_LINE, this.#column + (count || 1));
        else if (final === 'D') this.#column = Math.max(0, this.#column - (count || 1));
        else if (final === 'K') this.#erase(count);
    }

    #erase(what) {
        if (what === 0) {
            this.#text = this.#text.slice(0, this.#column);
            if (this.#runs) this.#runs = cut(this.#runs, this.#column);
        } else if (what === 1) {
            const column = this.#column;
            this.#column = 0;
            this.#put(' '.repeat(Math.min(column, this.#text.length)));
            this.#column = column;
        } else if (what === 2) {
            this.#text = '';
            this.#runs = null;
        }
    }

    // Writes at the cursor: appends to the line, or overwrites it.
    #put(piece) {
        while (this.#column + piece.length > MAX_LINE) {
            const room = MAX_LINE - this.#column;
            // Never splits a surrogate pair.
            const part = /[\ud800-\udbff]/.test(piece[room - 1] ?? '') ? room - 1 : room;
            if (part > 0) this.#put(piece.slice(0, part));
            piece = piece.slice(Math.max(part, 0));
            this.#feed();
        }
        if (!piece) return;
        const column = this.#column;
        if (column > this.#text.length) {
            this.#column = this.#text.length;
            const style = this.#style;
            this.#style = 0;
            this.#put(' '.repeat(column - this.#text.length));
            this.#style = style;
        }
        const to = column + piece.length;
        if (this.#style || this.#runs) this.#runs = paint(this.#runs, column, to, this.#style, this.#text.length);
        if (column === this.#text.length) {
            this.#text += piece;
        } else {
            // If the first half of a surrogate pair is overwritten, a space replaces the second half.
            const half = /[\udc00-\udfff]/.test(this.#text[to] ?? '') && /[\ud800-\udbff]/.test(this.#text[to - 1]);
            this.#text = this.#text.slice(0, column) + piece + (half ? ' ' : '') + this.#text.slice(to + (half ? 1 : 0));
        }
        this.#column = to;
    }

    // Logs have few styles but change between them often, so the effect of each change is cached.
    #sgr(parameters) {
        let next = this.#state.next.get(parameters);
        if (!next) {
            if (this.#changes++ > MAX_CHANGES) this.#forgetChanges();
            next = this.#stateOf(changed(this.#state.sgr, parameters));
            this.#state.next.set(parameters, next);
        }
        this.#state = next;
        this.#style = next.style;
    }

    #forgetChanges() {
        this.#states.clear();
        this.#state = { ...this.#state, next: new Map() };
        this.#changes = 0;
    }

    #stateOf(sgr) {
        const key = JSON.stringify(sgr);
        let state = this.#states.get(key);
        if (!state) {
            state = { sgr, style: this.#intern(sgr), next: new Map() };
            this.#states.set(key, state);
        }
        return state;
    }

    #intern(sgr) {
        let { fore, back } = sgr;
        // The theme's white and black are chosen for its own background; on another one they are plain white and black.
        if (back && WHITE_AND_BLACK[fore]) fore = WHITE_AND_BLACK[fore];
        if (sgr.inverse) [fore, back] = [back ?? 'var(--back)', fore ?? 'var(--text)'];
        const classes = ['bold', 'dim', 'italic', 'underline', 'strike'].filter((name) => sgr[name]).join(' ');
        const known = () => this.#known.get(fore || back || classes ? `${classes}|${fore}|${back}` : '');
        if (known() === undefined) {
            const [, levels] = LEVELS.find(([most]) => this.styles.length < most);
            fore = rounded(fore, levels);
            back = rounded(back, levels);
        }
        let style = known();
        if (style === undefined) {
            style = this.styles.push({ classes, fore, back }) - 1;
            this.#known.set(`${classes}|${fore}|${back}`, style);
        }
        return style;
    }
}

// Applies SGR parameters to a state. `38:2::r:g:b` is one parameter, `38;2;r;g;b` is five.
function changed(before, parameters) {
    const sgr = { ...before };
    const list = parameters.split(';');
    const colour = (parts) => {
        const of = parts.map((part) => parseInt(part, 10) || 0);
        if (of[0] === 5) return indexed(of[1]);
        if (of[0] === 2 && of.length >= 4) return rgb(of.slice(-3));
        return undefined;
    };
    for (let at = 0; at < list.length; at++) {
        const parts = list[at].split(':');
        const code = parseInt(parts[0], 10) || 0;
        if (code === 38 || code === 48) {
            let of = parts.slice(1);
            if (of.length === 0) {
                const kind = list[at + 1];
                of = list.slice(at + 1, at + 1 + (kind === '5' ? 2 : kind === '2' ? 4 : 1));
                at += of.length;
            }
            sgr[code === 38 ? 'fore' : 'back'] = colour(of);
        } else if (code === 0) for (const name of Object.keys(sgr)) delete sgr[name];
        else if (code === 1) sgr.bold = true;
        else if (code === 2) sgr.dim = true;
        else if (code === 3) sgr.italic = true;
        else if (code === 4) sgr.underline = parts[1] !== '0';
        else if (code === 7) sgr.inverse = true;
        else if (code === 9) sgr.strike = true;
        else if (code === 22) sgr.bold = sgr.dim = false;
        else if (code === 23) sgr.italic = false;
        else if (code === 24) sgr.underline = false;
        else if (code === 27) sgr.inverse = false;
        else if (code === 29) sgr.strike = false;
        else if (code >= 30 && code <= 37) sgr.fore = indexed(code - 30);
        else if (code === 39) sgr.fore = undefined;
        else if (code >= 40 && code <= 47) sgr.back = indexed(code - 40);
        else if (code === 49) sgr.back = undefined;
        else if (code >= 90 && code <= 97) sgr.fore = indexed(code - 82);
        else if (code >= 100 && code <= 107) sgr.back = indexed(code - 92);
    }
    return sgr;
}

function rgb(parts) {
    return `rgb(${parts.map((part) => Math.min(255, part)).join(' ')})`;
}

// The nearest colour with this number of levels per channel. Theme colours are unchanged.
function rounded(colour, levels) {
    if (levels === 256 || !colour?.startsWith('rgb')) return colour;
    const step = 255 / (levels - 1);
    return rgb(colour.match(/\d+/g).map((part) => Math.round(part / step) * step));
}

// The 256 colours of terminals: 16 of the theme, a colour cube, and greys.
function indexed(index) {
    if (index < 16) return `var(--c${index})`;
    if (index > 255) return undefined;
    if (index >= 232) return rgb(Array(3).fill((index - 232) * 10 + 8));
    return rgb([36, 6, 1].map((by) => Math.floor((index - 16) / by) % 6).map((level) => level && level * 40 + 55));
}

// Sets the style of the columns `from` to `to`, in runs that cover `length` columns so far.
function paint(runs, from, to, style, length) {
    runs ??= from === 0 ? [] : [0, 0];
    if (from === length) {
        if (runs[runs.length - 1] !== style) runs.push(from, style);
        return runs;
    }
    const painted = cut(runs, from);
    painted.push(from, style);
    let after = 0;
    let at = 0;
    for (; at < runs.length && runs[at] <= to; at += 2) after = runs[at + 1];
    if (to < length) painted.push(to, after);
    return painted.concat(runs.slice(at));
}

// The runs that start before a column.
function cut(runs, column) {
    let at = 0;
    while (at < runs.length && runs[at] < column) at += 2;
    return runs.slice(0, at);
}

/** Whether a text may have characters that aren't one column wide. */
export function isOdd(text) {
    return ODD.test(text);
}

// The width of a character in columns: an approximation of what terminals agree on.
function widthOf(character) {
    const code = character.codePointAt(0);
    if (code < 0x300) return 1;
    // Fast path for most characters that aren't Latin.
    if ((code >= 0x309b && code <= 0xa4cf) || (code >= 0xac00 && code <= 0xd7a3)) return 2;
    return NO_WIDTH.test(character) ? 0 : TWO_WIDE.test(character) ? 2 : 1;
}

/** The starts of a line's rows at this number of columns per row, for lines of characters of any width. */
export function breaks(text, columns) {
    const starts = [0];
    let used = 0;
    let at = 0;
    for (const character of text) {
        const width = widthOf(character);
        if (used + width > columns) {
            starts.push(at);
            used = 0;
        }
        used += width;
        at += character.length;
    }
    return starts;
}
