// What the checks in headless Chromium share: the server and its appenders, and pages.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { appendFileSync, mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

export const [bin, work, repo, ...flags] = process.argv.slice(2);
const { chromium } = createRequire(join(work, 'node/'))('playwright-core');
export const WAIT = 20_000;
export const ENDS = ['finished', 'interrupted', 'sealed'];

// ---- The server and its appenders ----------------------------------------------------------------------------------

export const started = new Set();
export function start(program, args, options = {}) {
    const child = spawn(join(bin, program), args, { stdio: ['pipe', 'ignore', 'pipe'], ...options });
    started.add(child);
    child.exited = once(child, 'exit').then(([code, signal]) => {
        started.delete(child);
        return code ?? signal;
    });
    child.stdin.on('error', () => {}); // It may be killed while it is written to.
    child.stderr.on('data', (text) => appendFileSync(join(work, `${program}.log`), text));
    return child;
}

export function within(promise, what, limit = WAIT) {
    let timer;
    const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`in vain for ${what}`)), limit)));
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

export class Server {
    constructor(name, ...more) {
        this.root = join(work, name);
        mkdirSync(this.root);
        this.more = more;
    }

    // The first time at a port of the system's choosing, then there again.
    async start() {
        this.child = start('httpfstream-server', [`--root=${this.root}`, `--http=127.0.0.1:${this.port ?? 0}`, ...this.more]);
        let banner = '';
        await within(
            new Promise((resolve, reject) => {
                this.child.exited.then((code) => reject(new Error(`the server ended with ${code}: ${banner}`)));
                this.child.stderr.on('data', (text) => (banner += text).includes('view:') && resolve());
            }),
            'the server',
        );
        this.port = /http:\/\/127\.0\.0\.1:(\d+)/.exec(banner)[1];
        this.url = `http://127.0.0.1:${this.port}`;
        return this;
    }

    async kill() {
        this.child.kill('SIGKILL');
        await this.child.exited;
    }

    // An appender that goes on through restarts; what it is given is appended.
    append(name) {
        const child = start('httpfstream-append', [`${this.url}/${name.split('/').map(encodeURIComponent).join('/')}`]);
        return {
            child,
            write: (data) => child.stdin.write(data),
            async finish() {
                child.stdin.end();
                assert.equal(await within(child.exited, 'the appender'), 0);
            },
        };
    }

    async put(name, data) {
        const appender = this.append(name);
        appender.write(data);
        await appender.finish();
    }

    stored(name) {
        return readFileSync(join(this.root, name));
    }
}

// Until so many bytes are stored, as anybody can see who asks.
export async function arrived(server, path, length) {
    const page = await follower(server, path, { wait: 10 });
    await reached(page, length);
    await closePage(page);
}

export const sha = (bytes) => createHash('sha256').update(bytes).digest('hex');

// ---- Pages ---------------------------------------------------------------------------------------------------------

export const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: [
        '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
        '--disable-component-update', '--disable-sync',
    ],
});

export async function newPage(options = {}) {
    const context = await browser.newContext({ viewport: { width: 900, height: 500 }, ...options });
    context.setDefaultTimeout(WAIT);
    const page = await context.newPage();
    page.said = [];
    page.on('console', (message) => page.said.push(message.text()));
    page.on('pageerror', (error) => page.said.push(`error: ${error}`));
    page.on('dialog', (dialog) => {
        page.said.push('dialog');
        dialog.dismiss();
    });
    return page;
}

export async function closePage(page) {
    await page.context().close();
}

// A page that follows with the module: what came so far is in `window.got`.
export async function follower(server, path, options = {}, prepare = () => {}) {
    const page = await newPage();
    await page.goto(`${server.url}/`);
    await prepare(page);
    await page.evaluate(
        async ([path, options, ends]) => {
            const { follow } = await import('/.httpfstream/follow.js');
            const got = (window.got = { length: 0, states: [], pieces: [] });
            got.done = (async () => {
                try {
                    for await (const event of follow(path, options)) {
                        if (event.type === 'data') {
                            if (event.offset !== (got.offset ?? 0) + got.length) got.gap = event.offset;
                            got.pieces.push(event.bytes);
                            got.length += event.bytes.length;
                        } else {
                            if ('offset' in event && got.length === 0) got.offset = event.offset;
                            got.life ??= event.life;
                            if (event.end) got.end = event.length;
                            if (!ends.includes(event.state) || event.end) got.states.push(event.state);
                        }
                    }
                } catch (error) {
                    got.error = error.code ?? String(error);
                    got.isTyped = error.name === 'FollowError';
                }
                got.isDone = true;
            })();
        },
        [path, options, ENDS],
    );
    return page;
}

export const reached = (page, length) => page.waitForFunction((length) => window.got.length >= length, length);

export async function result(page) {
    await page.waitForFunction(() => window.got.isDone);
    const { digest, ...rest } = await page.evaluate(async () => {
        const { pieces, done, ...rest } = window.got;
        const digest = await crypto.subtle.digest('SHA-256', await new Blob(pieces).arrayBuffer());
        return { digest: Array.from(new Uint8Array(digest)), ...rest };
    });
    await closePage(page);
    return { sha: Buffer.from(digest).toString('hex'), ...rest };
}

export const view = async (server, name, options) => {
    const page = await newPage(options);
    await page.goto(`${server.url}/${name}?view`);
    return page;
};
// At the end all of it has to be there.
export const badge = (page, state) => page.waitForSelector(`#state[data-state=${state}]${ENDS.includes(state) ? '[data-whole]' : ''}`);
export const shownBytes = (page) => page.$eval('#size', (size) => Number(size.value));
export const showsBytes = (page, count) => page.waitForFunction((count) => document.getElementById('size').value === String(count), count);
export const rows = (page) => page.$$eval('#rows > div', (rows) => rows.map((row) => row.textContent));
export const showsRow = (page, text) =>
    page.waitForFunction((text) => [...document.querySelectorAll('#rows > div')].some((row) => row.textContent === text), text);

// The page answers while it works: a frame is drawn.
export const answers = (page) => within(page.evaluate(() => new Promise((resolve) => requestAnimationFrame(resolve))), 'a frame');

export const main = await new Server('root', '--listing', '--grace=20').start();
await main.put('lines.txt', 'one\ntwo\nthree\n');
