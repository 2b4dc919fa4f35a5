// The viewer: follows the resource at the page's address, and draws the rows that are visible.
//
// Contents of a log never become markup: they are set as `textContent`, and colours are made from numbers.

import { follow } from './follow.js';
import { Lines, breaks, isOdd } from './lines.js';

// Of a longer resource only the last bytes are loaded. Beyond twice as many, the first lines are dropped.
const MAX_BYTES = 128 * 1024 * 1024;
// The same for lines, since short lines cost more than their bytes.
const MAX_LINES = 5_000_000;
// The tallest element, in pixels. Browsers limit elements to 17 or 33 million; where the rows need more, the scroll bar
// is scaled.
const MAX_HEIGHT = 8_000_000;
// Long work is done in slices of this many milliseconds, so that the page stays responsive.
const SLICE = 8;
const MAX_HITS = 100_000;
// The most elements in a row. A row that needs more is noise, and its rest is drawn without styles.
const MAX_SPANS = 1000;

const part = (id) => document.getElementById(id);
const log = part('log');
const rowsElement = part('rows');

let lines = new Lines();
let bytes = 0;
let dropped = 0; // The number of lines that were dropped at the beginning.

// ---- Layout --------------------------------------------------------------------------------------------------------

let wrap = true;
let columns = 80;
let rowHeight = 20;
let laidOut = 0; // The number of lines that are laid out.
let firstRow = new Uint32Array(1024); // The first row of each line.
let odd = new Uint8Array(1024);
let layout = 0; // Changes with each layout, after which all rows are redrawn.

const isWide = (text, line) => (line < laidOut ? odd[line] === 1 : isOdd(text));
const lineText = (line) => (line < lines.texts.length ? lines.texts[line] : lines.open.text);
const lineRuns = (line) => (line < lines.texts.length ? lines.runs[line] : lines.open.runs);

function rowsOf(text, wide) {
    if (!wrap || text.length <= columns / 2) return 1;
    return wide ? breaks(text, columns).length : Math.ceil(text.length / columns);
}

// Lays out new lines.
function layOut() {
    const count = lines.texts.length;
    if (count + 1 > firstRow.length) {
        const grown = new Uint32Array(2 * (count + 1));
        grown.set(firstRow);
        firstRow = grown;
        const more = new Uint8Array(grown.length);
        more.set(odd);
        odd = more;
    }
    for (; laidOut < count; laidOut++) {
        const text = lines.texts[laidOut];
        const wide = isOdd(text);
        odd[laidOut] = wide ? 1 : 0;
        firstRow[laidOut + 1] = firstRow[laidOut] + rowsOf(text, wide);
    }
}

// Lays out all lines again, and keeps the topmost line in place.
function layOutAgain() {
    const top = lineOf(Math.floor(position / rowHeight));
    const into = position / rowHeight - firstRow[top];
    for (let line = 0; line < laidOut; line++) {
        firstRow[line + 1] = firstRow[line] + rowsOf(lines.texts[line], odd[line] === 1);
    }
    layout++;
    const rows = (firstRow[top + 1] ?? Infinity) - firstRow[top];
    resize();
    goTo((firstRow[top] + Math.min(into, Math.max(0, rows - 1))) * rowHeight);
}

const openText = () => lines.open.text;
const totalRows = () => firstRow[laidOut] + (openText() ? rowsOf(openText(), isOdd(openText())) : 0);

// The line that a row belongs to.
function lineOf(row) {
    let low = 0;
    let high = laidOut;
    while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (firstRow[middle] <= row) low = middle;
        else high = middle - 1;
    }
    return low;
}

// ---- Scrolling -----------------------------------------------------------------------------------------------------

let position = 0; // The scroll position in pixels, among all rows.
let height = 0; // The height of all rows, in pixels.
let scaled = false; // Whether the scroll bar is scaled: the rows are higher than an element can be.
let lastTop = 0;
let following = true;
let settleTimer;

const windowHeight = () => log.clientHeight;
const end = () => Math.max(0, height - windowHeight());
const scrollEnd = () => Math.max(1, Math.min(height, MAX_HEIGHT) - windowHeight());
const scrollOf = (pixel) => (scaled ? (pixel / Math.max(1, end())) * scrollEnd() : pixel);

function resize() {
    height = totalRows() * rowHeight + 8;
    scaled = height > MAX_HEIGHT;
    part('height').style.height = `${Math.max(Math.min(height, MAX_HEIGHT), 1)}px`;
}

function goTo(pixel) {
    position = Math.min(Math.max(0, pixel), end());
    log.scrollTop = scrollOf(position);
    lastTop = log.scrollTop;
    drawSoon();
}

log.addEventListener('scroll', () => {
    const by = log.scrollTop - lastTop;
    if (by !== 0) {
        if (!scaled) position = log.scrollTop;
        else if (log.scrollTop <= 0) position = 0;
        else if (log.scrollTop >= scrollEnd() - 1) position = end();
        // A small step moves by that many pixels; a drag of the scroll bar goes to the proportional position.
        else if (Math.abs(by) < 2 * windowHeight()) position = Math.min(Math.max(0, position + by), end());
        else position = (log.scrollTop / scrollEnd()) * end();
        // Scrolling up stops following, and scrolling to the end resumes it.
        if (by < 0 && position < end() - rowHeight) setFollowing(false);
        else if (by > 0 && position >= end() - 2) setFollowing(true);
        lastTop = log.scrollTop;
    }
    drawSoon();
    clearTimeout(settleTimer);
    // After small steps a scaled scroll bar no longer matches the position. It is corrected when scrolling ends.
    if (scaled) settleTimer = setTimeout(() => goTo(position), 200);
});

function setFollowing(on) {
    if (on) goTo(end());
    if (on === following) return;
    following = on;
    seenRows = totalRows();
    const pause = part('pause');
    pause.setAttribute('aria-pressed', String(!on));
    pause.textContent = on ? 'Pause' : 'Paused';
    drawSoon();
}

// ---- Drawing -------------------------------------------------------------------------------------------------------

let drawn = []; // The rows in the document, in order: { row, key, element }.
let seenRows = 0; // The number of rows when following stopped.
let drawRequested = false;

function drawSoon() {
    if (drawRequested) return;
    drawRequested = true;
    requestAnimationFrame(() => {
        drawRequested = false;
        draw();
    });
}

function draw() {
    layOut();
    resize();
    if (following) goTo(end());
    const total = totalRows();
    const first = Math.max(0, Math.floor(position / rowHeight) - 20);
    const last = Math.min(total, Math.ceil((position + windowHeight()) / rowHeight) + 20);
    const before = new Map(drawn.map((row) => [row.row, row]));
    const after = [];
    let line = lineOf(first);
    let starts = startsOf(line);
    for (let row = first; row < last; row++) {
        while (row - firstRow[line] >= starts.length) starts = startsOf(++line);
        const at = row - firstRow[line];
        const text = lineText(line);
        const isOpen = line >= lines.texts.length;
        const key = `${layout} ${dropped + line} ${search.drawing} ${isOpen ? `${text.length} ${openVersion}` : ''}`;
        const old = before.get(row);
        if (old?.key === key) {
            before.delete(row);
            after.push(old);
        } else {
            const element = document.createElement('div');
            element.dataset.line = dropped + line;
            fill(element, line, text, starts[at], starts[at + 1] ?? text.length);
            after.push({ row, key, element });
        }
    }
    for (const { element } of before.values()) element.remove();
    // Rows that stay are not touched, so that a selection in them survives.
    let next = null;
    for (let at = after.length - 1; at >= 0; at--) {
        const { element } = after[at];
        if (element.parentNode !== rowsElement || element.nextSibling !== next) rowsElement.insertBefore(element, next);
        next = element;
    }
    drawn = after;
    rowsElement.style.transform = `translateY(${log.scrollTop + first * rowHeight - position}px)`;
    part('height').style.width = wrap ? '' : `${rowsElement.offsetWidth}px`;
    showCounts(total);
}

// The starts of a line's rows.
function startsOf(line) {
    const text = lineText(line);
    if (!wrap || text.length <= columns / 2) return [0];
    if (isWide(text, line)) return breaks(text, columns);
    const starts = [0];
    for (let at = columns; at < text.length; at += columns) starts.push(at);
    return starts;
}

// Fills a row's element with spans of text, split where styles and hits begin and end.
function fill(element, line, text, from, to) {
    const runs = lineRuns(line) ?? [0, 0];
    const hits = search.hitsIn(line, text);
    let hit = 0;
    for (let run = 0; run < runs.length; run += 2) {
        let at = Math.max(from, runs[run]);
        const stop = Math.min(to, runs[run + 2] ?? text.length);
        while (at < stop) {
            if (element.childNodes.length >= MAX_SPANS) {
                element.append(text.slice(at, to));
                return;
            }
            while (hit < hits.length && hits[hit].to <= at) hit++;
            const inside = hit < hits.length && hits[hit].from <= at;
            const until = hit < hits.length ? Math.min(stop, inside ? hits[hit].to : hits[hit].from) : stop;
            element.append(span(text.slice(at, until), lines.styles[runs[run + 1]], inside && hits[hit]));
            at = until;
        }
    }
}

function span(text, style, hit) {
    if (!hit && !style.classes && !style.fore && !style.back) return document.createTextNode(text);
    const element = document.createElement(hit ? 'mark' : 'span');
    element.textContent = text;
    element.className = style.classes ?? '';
    if (hit) {
        element.classList.toggle('here', hit.here);
    } else {
        if (style.fore) element.style.color = style.fore;
        if (style.back) element.style.backgroundColor = style.back;
    }
    return element;
}

function showCounts(total) {
    const size = part('size');
    const count = dropped + lines.texts.length + (openText() ? 1 : 0);
    size.value = bytes;
    size.title = `${bytes.toLocaleString('en')} bytes`;
    size.textContent = `${sized(bytes)} · ${count.toLocaleString('en')} ${count === 1 ? 'line' : 'lines'}`;
    size.dataset.lines = count;
    const more = total - seenRows;
    part('end').hidden = following || position >= end() - 2;
    part('end').textContent = more > 0 ? `↓ Jump to the end (${more.toLocaleString('en')} new)` : '↓ Jump to the end';
}

function sized(count) {
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
    let unit = 0;
    for (; count >= 1024 && unit < units.length - 1; unit++) count /= 1024;
    return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

// Copying a wrapped line gives one line.
document.addEventListener('copy', (event) => {
    const selection = getSelection();
    if (selection.isCollapsed || !log.contains(selection.anchorNode)) return;
    const range = selection.getRangeAt(0);
    let text = '';
    let line;
    for (const row of rowsElement.children) {
        if (!range.intersectsNode(row)) continue;
        const inside = document.createRange();
        inside.selectNodeContents(row);
        if (row.contains(range.startContainer)) inside.setStart(range.startContainer, range.startOffset);
        if (row.contains(range.endContainer)) inside.setEnd(range.endContainer, range.endOffset);
        text += (line === undefined || line === row.dataset.line ? '' : '\n') + inside.toString();
        line = row.dataset.line;
    }
    event.clipboardData.setData('text/plain', text);
    event.preventDefault();
});

// ---- Search --------------------------------------------------------------------------------------------------------

const search = {
    pattern: null,
    hitLines: [],
    hitColumns: [],
    here: -1,
    searched: 0, // The number of lines that were searched.
    running: false,
    drawing: 0, // Changes whenever the marked hits change, after which rows are redrawn.

    start(query) {
        this.pattern = query ? new RegExp(query.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'), 'gi') : null;
        this.restart();
        this.here = -1;
        this.wantsFirst = query !== '';
        this.go();
    },

    restart() {
        this.hitLines = [];
        this.hitColumns = [];
        this.searched = 0;
        this.drawing++;
        drawSoon();
    },

    // Searches the lines that were not searched yet, in slices.
    async go() {
        if (this.running) return;
        this.running = true;
        let until = performance.now() + SLICE;
        while (this.pattern && this.searched < lines.texts.length && this.hitLines.length < MAX_HITS) {
            const text = lines.texts[this.searched];
            this.pattern.lastIndex = 0;
            for (let found; (found = this.pattern.exec(text)); ) {
                this.hitLines.push(this.searched);
                this.hitColumns.push(found.index);
            }
            this.searched++;
            if (this.searched % 64 === 0 && performance.now() > until) {
                this.showCount();
                await yieldToPage();
                until = performance.now() + SLICE;
            }
            this.goToFirst();
        }
        this.running = false;
        this.showCount();
    },

    // Goes to the first hit at or below the top of the window as soon as it is found; to the last hit while following.
    goToFirst() {
        if (!this.wantsFirst || this.hitLines.length === 0) return;
        const top = lineOf(Math.floor(position / rowHeight));
        if (following || this.hitLines.at(-1) < top) {
            if (this.searched < lines.texts.length) return;
        }
        this.wantsFirst = false;
        const found = following ? this.hitLines.length - 1 : this.hitLines.findIndex((line) => line >= top);
        this.show(Math.max(0, found));
    },

    step(by) {
        const count = this.hitLines.length;
        if (count === 0) return;
        this.wantsFirst = false;
        this.show(this.here < 0 ? (by > 0 ? 0 : count - 1) : (this.here + by + count) % count);
    },

    show(index) {
        this.here = index;
        this.drawing++;
        const line = this.hitLines[index];
        layOut();
        const starts = startsOf(line);
        let row = 0;
        while (starts[row + 1] <= this.hitColumns[index]) row++;
        const pixel = (firstRow[line] + row) * rowHeight;
        setFollowing(false);
        if (pixel < position || pixel > position + windowHeight() - 2 * rowHeight) goTo(pixel - windowHeight() / 2);
        this.showCount();
        drawSoon();
        if (!wrap) requestAnimationFrame(() => rowsElement.querySelector('mark.here')?.scrollIntoView({ block: 'nearest', inline: 'nearest' }));
    },

    // The hits in a line that is drawn.
    hitsIn(line, text) {
        if (!this.pattern) return [];
        const here = this.hitLines[this.here] === line ? this.hitColumns[this.here] : -1;
        return Array.from(text.matchAll(this.pattern), ({ index, 0: { length } }) => {
            return { from: index, to: index + length, here: index === here };
        });
    },

    showCount() {
        const count = this.hitLines.length;
        const more = count >= MAX_HITS ? '+' : '';
        const counted = `${this.here >= 0 ? `${(this.here + 1).toLocaleString('en')}/` : ''}${count.toLocaleString('en')}${more}`;
        part('hits').textContent = this.pattern ? counted + (this.running ? '…' : '') : '';
    },
};

// ---- Following -----------------------------------------------------------------------------------------------------

let openVersion = 0; // Changes with each write, which may change the open line.

const channel = new MessageChannel();
let yielded = [];
channel.port1.onmessage = () => yielded.splice(0).forEach((resolve) => resolve());
// Yields to input and drawing. Unlike a timeout's, this task has no minimum delay.
function yieldToPage() {
    return new Promise((resolve) => {
        yielded.push(resolve);
        channel.port2.postMessage(0);
    });
}

function show(state, note = '') {
    const badge = part('state');
    if (badge.dataset.state !== state) {
        badge.dataset.state = state;
        badge.textContent = state;
        document.title = `${state === 'live' ? '● ' : ''}${part('name').textContent}`;
    }
    part('note').textContent = note;
    part('note').hidden = !note;
}

// Drops the first lines, until bytes and lines are within their limits.
function dropFirst() {
    layOut();
    const { texts } = lines;
    const weight = (line) => texts[line].length + 1;
    let all = 0;
    for (let line = 0; line < texts.length; line++) all += weight(line);
    const share = MAX_BYTES / kept;
    let left = all;
    let count = 0;
    for (; count < texts.length && (left > all * share || texts.length - count > MAX_LINES); count++) left -= weight(count);
    kept = all && (kept * left) / all; // Without lines, all bytes were overwritten in the open line.
    if (count === 0) return;
    lines.drop(count);
    dropped += count;
    const rows = firstRow[count];
    laidOut -= count;
    odd.copyWithin(0, count, count + laidOut);
    for (let line = 0; line <= laidOut; line++) firstRow[line] = firstRow[count + line] - rows;
    layout++;
    position = Math.max(0, position - rows * rowHeight);
    seenRows = Math.max(0, seenRows - rows);
    search.here = -1;
    search.restart();
    resize();
    goTo(position);
}

let kept = 0; // Approximately the number of bytes in the lines that are kept.
let skipped = 0; // The number of bytes at the beginning that were never loaded.

function note() {
    const missing = [];
    if (skipped) missing.push(sized(skipped));
    if (dropped) missing.push(`${dropped.toLocaleString('en')} lines`);
    return missing.length > 0 ? `The first ${missing.join(' and ')} are left out here; “raw” has everything.` : '';
}

async function run(url) {
    const decoder = new TextDecoder();
    let until = performance.now() + SLICE;
    const write = (text) => {
        lines.write(text);
        openVersion++;
    };
    for await (const event of follow(url, { tail: MAX_BYTES })) {
        if (event.type === 'data') {
            bytes += event.bytes.length;
            // An event can be large.
            for (let at = 0; at < event.bytes.length; at += 65536) {
                const some = event.bytes.subarray(at, at + 65536);
                write(decoder.decode(some, { stream: true }));
                kept += some.length;
                if (kept > 2 * MAX_BYTES || lines.texts.length > 2 * MAX_LINES) {
                    dropFirst();
                    show(part('state').dataset.state, note());
                }
                if (performance.now() > until) {
                    drawSoon();
                    await yieldToPage();
                    until = performance.now() + SLICE;
                }
            }
            search.go();
        } else if (event.state === 'connecting') {
            show('connecting', event.attempt > 1 ? `Reconnecting: ${event.reason}.` : note());
        } else {
            if (event.offset > 0 && bytes === 0) {
                bytes = skipped = event.offset;
            }
            show(event.state, note());
            if (event.end) {
                write(decoder.decode());
                lines.end();
                search.go();
                part('state').dataset.whole = '';
                part('state').title = 'The end of the log.';
            }
        }
        drawSoon();
    }
}

// ---- The page ------------------------------------------------------------------------------------------------------

function measure() {
    const probe = document.createElement('div');
    probe.textContent = 'x'.repeat(100);
    rowsElement.append(probe);
    probe.style.width = 'max-content';
    const { width, height: tall } = probe.getBoundingClientRect();
    probe.remove();
    const padding = 2 * parseFloat(getComputedStyle(rowsElement).paddingLeft);
    const fits = Math.max(10, Math.floor((log.clientWidth - padding) / (width / 100)));
    if (fits !== columns || tall !== rowHeight) {
        columns = fits;
        rowHeight = tall;
        layOutAgain();
    }
    drawSoon();
}

function setWrap(on) {
    wrap = on;
    part('wrap').setAttribute('aria-pressed', String(on));
    log.scrollLeft = 0;
    layOutAgain();
}

function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    try {
        localStorage.setItem('httpfstream-theme', theme);
    } catch {
        // Storage is not allowed, so the theme holds for this page only.
    }
}

function keys(event) {
    const typing = event.target instanceof HTMLInputElement;
    const command = event.ctrlKey || event.metaKey;
    if (command && event.key.toLowerCase() === 'f' && !typing) {
        // The browser's own search finds only visible rows. Pressing the keys again opens it.
        part('query').focus();
        part('query').select();
    } else if (event.key === 'F3') {
        search.step(event.shiftKey ? -1 : 1);
    } else if (event.key === 'Escape' && typing) {
        part('query').value = '';
        search.start('');
        log.focus();
    } else if (typing || command || event.altKey) {
        return;
    } else if (event.key === '/') {
        part('query').focus();
    } else if (event.key === 'End') {
        setFollowing(true);
    } else if (event.key === 'Home') {
        setFollowing(false);
        goTo(0);
    } else if (event.key === 'p') {
        setFollowing(!following);
    } else if (event.key === 'w') {
        setWrap(!wrap);
    } else {
        return;
    }
    event.preventDefault();
}

// The same address without `view`. The rest of the query may hold parameters that the server needs, such as
// credentials.
const query = location.search.slice(1).split('&').filter((pair) => pair && pair.split('=')[0] !== 'view').join('&');
const resource = location.pathname + (query && `?${query}`);

try {
    part('name').textContent = decodeURIComponent(location.pathname.split('/').pop());
} catch {
    part('name').textContent = location.pathname;
}
part('name').title = location.pathname;
part('raw').href = resource;
try {
    const theme = localStorage.getItem('httpfstream-theme');
    if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
    // Storage is not allowed.
}
part('theme').addEventListener('click', () => {
    const dark = getComputedStyle(document.documentElement).colorScheme.trim();
    const isDark = dark === 'dark' || (dark !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches);
    setTheme(isDark ? 'light' : 'dark');
});
part('wrap').addEventListener('click', () => setWrap(!wrap));
part('pause').addEventListener('click', () => setFollowing(!following));
part('end').addEventListener('click', () => {
    setFollowing(true);
    log.focus();
});
part('search').addEventListener('submit', (event) => {
    event.preventDefault();
    search.step(1);
});
part('previous').addEventListener('click', () => search.step(-1));
part('query').addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || !event.shiftKey) return;
    event.preventDefault();
    search.step(-1);
});
let typed;
part('query').addEventListener('input', ({ target }) => {
    clearTimeout(typed);
    typed = setTimeout(() => search.start(target.value), 120);
});
document.addEventListener('keydown', keys);
new ResizeObserver(measure).observe(log);
measure();
log.focus();

run(resource).catch((error) => {
    const absent = error.code === 'absent' || error.code === 'life';
    const notes = {
        absent: 'The resource was deleted.',
        life: 'The resource was deleted and recreated: reload the page to see the new one.',
        unauthorized: 'The server requires credentials: reload the page.',
        forbidden: 'The server does not allow access.',
    };
    show(absent ? 'absent' : 'error', notes[error.code] ?? `Following ended: ${error.message}.`);
});
