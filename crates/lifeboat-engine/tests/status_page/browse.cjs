// Looks at pages as people do, and tells what it saw, as JSON on standard output.
//
// Usage: node browse.cjs CHROMIUM < pages.json
// Each page: { url, width, scheme, javascript, screenshot, keyboard, check, before, pierce }
//   keyboard  goes through the page with the Tab key
//   check     asks axe-core whether everybody can read it
//   pierce    puts this HTML into the page on its way, as if something had got through the escaping
//   lawless   takes the policy away as well
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const modules = process.env.LIFEBOAT_TEST_BROWSER_MODULES;
const { chromium } = require(path.join(modules, 'playwright-core'));
const axe = fs.readFileSync(path.join(modules, 'axe-core/axe.min.js'), 'utf8');

const PATIENCE = 60_000;

async function look(browser, page) {
  const context = await browser.newContext({
    viewport: { width: page.width, height: page.height || (page.width < 500 ? 740 : 900) },
    colorScheme: page.scheme,
    javaScriptEnabled: page.javascript,
    deviceScaleFactor: 1,
  });
  context.setDefaultTimeout(PATIENCE);
  const tab = await context.newPage();
  const seen = { console: [], requests: [], violations: [], stops: [], focusable: 0 };
  tab.on('console', message => seen.console.push(`${message.type()}: ${message.text()}`));
  tab.on('pageerror', error => seen.console.push(`error: ${error}`));
  context.on('request', request => seen.requests.push(request.url()));
  if (page.pierce) {
    await tab.route(page.url, async route => {
      const answer = await route.fetch();
      const headers = answer.headers();
      if (page.lawless) delete headers['content-security-policy'];
      const body = (await answer.text()).replace(/<main[^>]*>/, found => found + page.pierce);
      await route.fulfill({ status: 200, headers, body });
    });
  }
  const answer = await tab.goto(page.url, { waitUntil: 'load' });
  seen.status = answer ? answer.status() : 0;
  seen.title = await tab.title();
  seen.text = await tab.locator('body').innerText();
  seen.headings = await tab.locator('h1, h2, h3, h4').evaluateAll(all => all.map(one => one.tagName.toLowerCase()));
  seen.elements = await tab.locator('html').evaluate(root => {
    const counts = {};
    for (const one of root.querySelectorAll('*')) counts[one.tagName.toLowerCase()] = (counts[one.tagName.toLowerCase()] || 0) + 1;
    return counts;
  });
  // How much is to the right of what the window shows, and what is.
  seen.overhang = await tab.locator('html').evaluate(root => root.scrollWidth - root.clientWidth);
  seen.wide = await tab.locator('body').evaluate(body => {
    const wide = [];
    for (const one of body.querySelectorAll('*')) {
      const box = one.getBoundingClientRect();
      if (!(one instanceof SVGElement) && box.right > document.documentElement.clientWidth + 1) wide.push(`${one.tagName} ${one.className} ${Math.round(box.right)}`);
    }
    return wide.slice(0, 5);
  });
  seen.ground = await tab.locator('html').evaluate(root => getComputedStyle(root).backgroundColor);
  if (page.check) {
    seen.violations = await tab.evaluate(async source => {
      (0, eval)(source);
      const result = await axe.run(document, { resultTypes: ['violations'] });
      return result.violations.map(one => `${one.id}: ${one.help}: ${one.nodes.map(node => `${node.html} (${node.failureSummary})`).slice(0, 3).join('; ')}`);
    }, axe).catch(error => [`axe did not run: ${error}`]);
  }
  if (page.keyboard) {
    seen.focusable = await tab.locator('a[href], [tabindex="0"]').count();
    for (let at = 0; at < seen.focusable; at++) {
      await tab.keyboard.press('Tab');
      seen.stops.push(await tab.evaluate(() => {
        const one = document.activeElement;
        const style = getComputedStyle(one);
        const box = one.getBoundingClientRect();
        return {
          what: one.outerHTML.slice(0, 120),
          shows: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
          inWindow: box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
        };
      }));
    }
    await tab.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
  }
  if (page.screenshot) await tab.screenshot({ path: page.screenshot, fullPage: !page.window, animations: 'disabled' });
  await context.close();
  return seen;
}

(async () => {
  const pages = JSON.parse(fs.readFileSync(0, 'utf8'));
  const browser = await chromium.launch({
    executablePath: process.argv[2],
    timeout: PATIENCE,
    args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-networking', '--disable-component-update'],
  });
  const seen = [];
  for (const page of pages) seen.push(await look(browser, page));
  await browser.close();
  process.stdout.write(JSON.stringify(seen));
})().catch(error => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
