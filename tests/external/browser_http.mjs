// What headless Chromium does by plain HTTP, from pages of the server and of other sites: see browser.mjs.

export const checks = {};
