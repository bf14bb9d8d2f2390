// What everyone does with the panel, by galata's ways through JupyterLab; what came of it is asked of the machine itself.

import { expect, type IJupyterLabPageFixture, test } from '@jupyterlab/galata';
import type { Locator } from '@playwright/test';

const NOTEBOOK = 'machine.ipynb';
/** Its cells. */
const [ONE, TWO, SAY, MINE] = [0, 1, 2, 3];

test.use({
  autoGoto: false,
  // Whatever stands in for the server's kernels would answer for the extension's routes, too.
  kernels: null,
  sessions: null,
  terminals: null,
  tmpPath: '',
  waitForApplication: async ({ baseURL }, use) => {
    expect(baseURL).toBeTruthy();
    await use(async page => {
      await page.locator('#jupyterlab-splash').waitFor({ state: 'detached' });
    });
  }
});

/** Returns what a cell shows once it has run. */
async function run(page: IJupyterLabPageFixture, cell: number): Promise<string> {
  await page.notebook.runCell(cell, true);
  return ((await page.notebook.getCellTextOutput(cell)) ?? []).join('');
}

/** Presses a button of the dialogue, which closes it. */
async function answer(page: IJupyterLabPageFixture, name: string): Promise<void> {
  const dialogue = page.locator('.jp-Dialog');
  await dialogue.getByRole('button', { name, exact: true }).click();
  await expect(dialogue).toHaveCount(0);
}

/** Returns what the supervisor says of the machine. */
async function machine(page: IJupyterLabPageFixture): Promise<Record<string, any>> {
  const kernel = await page.evaluate(
    () => (window.galata.app.shell.currentWidget as any).sessionContext.session.kernel.id as string
  );
  return (await page.request.get(`agentvm/api/kernels/${kernel}`)).json();
}

function press(place: Locator, name: string): Promise<void> {
  return place.getByRole('button', { name, exact: true }).click();
}

test('a machine is seen, saved, gone back with, limited, forked and adopted', async ({ page }) => {
  const panel = page.locator('.avm-panel');
  const rows = panel.getByRole('treeitem');
  const dialogue = page.locator('.jp-Dialog');
  const id = panel.locator('.avm-id');

  await test.step('the status bar leads to the panel', async () => {
    await page.goto();
    expect(await page.notebook.openByPath(NOTEBOOK)).toBeTruthy();
    expect(await page.notebook.activate(NOTEBOOK)).toBeTruthy();
    await run(page, ONE);
    await page.locator('.avm-status-button').click();
    await expect(panel.locator('.avm-badge')).toHaveText('running');
    await expect(id).toHaveText((await machine(page)).vm);
  });

  await test.step('a snapshot is taken from the menu, and another with a label', async () => {
    await page.menu.clickMenuItem('Kernel>Virtual Machine>Take a Snapshot');
    await expect(rows).toHaveCount(3);
    await press(panel, 'Snapshot …');
    await dialogue.getByRole('textbox', { name: 'Label' }).fill('base');
    await answer(page, 'Take snapshot');
    await expect(rows.filter({ hasText: 'base' })).toBeVisible();
  });

  await test.step('going back says what is lost, and does it', async () => {
    await run(page, TWO);
    expect(await run(page, SAY)).toContain('x is 2');
    const before = await id.innerText();
    await rows.filter({ hasText: 'base' }).click();
    await press(panel, 'Go back …');
    await expect(dialogue).toContainText('What is lost');
    await answer(page, 'Go back');
    await expect(id).not.toHaveText(before);
    expect((await machine(page)).vm).not.toBe(before);
    expect(await run(page, SAY)).toContain('x is 1');
  });

  await test.step('a limit is set', async () => {
    await panel.getByText('Limits', { exact: true }).click();
    const limit = panel.locator('.avm-limit').filter({ hasText: 'Time for a cell' });
    await limit.getByRole('textbox').fill('123');
    await press(limit, 'Set');
    await expect.poll(async () => (await machine(page)).limits.cell_deadline).toBe(123);
  });

  await test.step('forks are seen side by side, and one is gone on in', async () => {
    const before = await id.innerText();
    await press(panel, 'Fork …');
    await dialogue.getByRole('spinbutton').first().fill('2');
    await dialogue.getByRole('textbox').fill('import os; mine = os.urandom(4).hex(); mine');
    await answer(page, 'Fork');
    const columns = page.locator('.avm-column');
    await expect(columns).toHaveCount(2);
    const mine = /'([0-9a-f]{8})'/.exec(await columns.nth(1).innerText())?.[1];
    expect(mine).toBeTruthy();
    await press(columns.nth(1), 'Adopt');
    await answer(page, 'Adopt');
    await expect(columns.nth(1).getByRole('button', { name: 'Adopted' })).toBeDisabled();
    expect(await page.notebook.activate(NOTEBOOK)).toBeTruthy();
    expect((await machine(page)).vm).not.toBe(before);
    expect(await run(page, MINE)).toContain(`mine ${mine}`);
  });
});
