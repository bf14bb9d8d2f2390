// What the tests do inside JupyterLab, through its own application object. Loaded into the page by lab_bed.py.
() => {
  const app = window.jupyterapp;
  let panel = null;

  // Two frames drawn, and then idle.
  const drawn = () =>
    new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => requestIdleCallback(done))));

  const open = async (path, kernel) => {
    const options = kernel ? { kernel: { name: kernel } } : { kernel: { name: null, shouldStart: false } };
    panel = await app.commands.execute('docmanager:open', { path, factory: 'Notebook', ...options });
    await panel.context.ready;
    await panel.revealed;
    if (kernel) {
      await panel.sessionContext.ready;
      // The first answer: a kernel that is still starting loses nothing, but a widget manager wants to know it.
      await panel.sessionContext.session.kernel.info;
    }
    await drawn();
  };

  // Runs each cell by itself: one that the page cannot show does not keep the others from being shown. Returns the
  // names of those, and "save" where the notebook cannot be saved.
  const run = async () => {
    const broken = [];
    for (const [index, cell] of panel.content.widgets.entries()) {
      panel.content.activeCellIndex = index;
      try {
        await app.commands.execute('notebook:run-cell');
      } catch (error) {
        broken.push(`${cell.model.sharedModel.metadata.case}: ${error}`);
      }
    }
    await drawn();
    try {
      await panel.context.save();
    } catch (error) {
      broken.push(`save: ${error}`);
    }
    return broken;
  };

  // Runs each cell; how many comms the page has after each.
  const counted = async () => {
    const counts = [];
    for (const index of panel.content.widgets.keys()) {
      panel.content.activeCellIndex = index;
      await app.commands.execute('notebook:run-cell');
      await drawn();
      counts.push(panel.sessionContext.session.kernel._comms.size);
    }
    return counts;
  };

  // Runs one cell, to its end.
  const runOne = async name => {
    panel.content.activeCellIndex = panel.content.widgets.findIndex(
      widget => widget.model.sharedModel.metadata.case === name
    );
    await app.commands.execute('notebook:run-cell');
  };

  const save = () => panel.context.save();

  const shutDown = () => panel.sessionContext.shutdown();

  const close = async () => {
    await panel.sessionContext.shutdown();
    panel.dispose();
    await drawn();
  };

  // What the notebook holds of a cell's outputs, drawn or not.
  const kept = name =>
    panel.content.widgets.find(widget => widget.model.sharedModel.metadata.case === name).model.outputs.toJSON();

  const sources = () => panel.content.model.sharedModel.cells.map(cell => cell.source);

  // Elements of outputs, without those in frames: nothing in an opaque frame reaches the page.
  const outputs = () => [
    ...document.querySelectorAll('.jp-OutputArea-output *, .jp-MainAreaWidget .jp-RenderedHTMLCommon *')
  ];

  // A form's fields may be called like its methods.
  const attributes = element =>
    Element.prototype.getAttributeNames
      .call(element)
      .map(name => [name, Element.prototype.getAttribute.call(element, name)]);

  const caseOf = element =>
    panel.content.widgets.find(widget => widget.node.contains(element))?.model.sharedModel.metadata.case;

  // What a case may do to the page, told by its name.
  const named = {
    // A script ran with access to the page.
    script: name => (window.__canary ?? []).includes(name),
    // A style sheet reached beyond its output.
    style: name =>
      [document.documentElement, document.body, document.querySelector('#jp-top-panel')].some(
        element => element && getComputedStyle(element).getPropertyValue('--' + name) !== ''
      ),
    // A name of the guest's became one of the page's.
    name: name => document.getElementById(name) !== null || name in window || name in document,
    // A cell was changed.
    source: name => sources().some(source => source === '%pull ' + name)
  };

  // What an element of an output may be.
  const found = {
    // A link that runs a script, or opens what the user cannot see, when it is clicked.
    link: element =>
      attributes(element).some(
        ([name, value]) =>
          name === 'ping' ||
          (/^(href|xlink:href|action|formaction|values|to|from)$/i.test(name) &&
            /^(javascript|vbscript|data:text|blob):?/i.test(value.replace(/[\s\0-\x20]/g, '')))
      ),
    // Lab listens for these, and runs a command of its own when the element is clicked.
    command: element => attributes(element).some(([name]) => name.startsWith('data-commandlinker')),
    // Drawn over what is Lab's.
    overlay: element => getComputedStyle(element).position === 'fixed'
  };

  const fired = names => {
    const result = {};
    for (const [kind, test] of Object.entries(named)) {
      result[kind] = names.filter(test);
    }
    for (const [kind, test] of Object.entries(found)) {
      result[kind] = outputs().filter(test).map(caseOf).filter(name => name !== undefined);
    }
    const corners = [[5, 5], [innerWidth / 2, 10], [10, innerHeight / 2], [innerWidth / 2, innerHeight - 5]];
    const covering = corners.map(([x, y]) => document.elementFromPoint(x, y)?.closest('.jp-OutputArea-output'));
    result.covering = covering.filter(output => output).map(caseOf);
    return result;
  };

  window.bed = { open, run, counted, runOne, save, shutDown, drawn, close, kept, sources, fired };
}
