import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';

const machine: JupyterFrontEndPlugin<void> = {
  id: 'agentvm-kernel:machine',
  description: 'Shows and steers the virtual machine under a notebook.',
  autoStart: true,
  activate: (_app: JupyterFrontEnd): void => undefined
};

export default [machine];
