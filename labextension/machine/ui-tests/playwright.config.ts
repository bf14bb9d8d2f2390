// A server is running already, and the browser is the machine's own: tests/browser/test_machine_galata.py says which.

import base from '@jupyterlab/galata/lib/playwright-config';

const { TARGET_URL, UI_TESTS_TOKEN, UI_TESTS_CHROMIUM, UI_TESTS_FLAGS, UI_TESTS_OUTPUT } = process.env;

export default {
  ...base,
  testDir: '.',
  outputDir: UI_TESTS_OUTPUT,
  reporter: [['line']],
  workers: 1,
  retries: 0,
  timeout: 300_000,
  expect: { timeout: 60_000 },
  use: {
    ...base.use,
    actionTimeout: 20_000,
    baseURL: TARGET_URL,
    extraHTTPHeaders: { Authorization: `token ${UI_TESTS_TOKEN}` },
    launchOptions: { executablePath: UI_TESTS_CHROMIUM, args: JSON.parse(UI_TESTS_FLAGS ?? '[]') },
    viewport: { width: 1400, height: 1000 },
    screenshot: 'only-on-failure',
    // Both want programs that Playwright would download.
    video: 'off',
    trace: 'off'
  }
};
