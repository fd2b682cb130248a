"""Pictures of MuJoCo simulations without a screen: MuJoCo's own renderer with a buffer of the picture's size, on EGL or OSMesa.

A process that renders here must not render with dm_control or Gymnasium too: two OpenGL contexts corrupt each other's frames.
"""
from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

QUALITIES = ('full', 'near', 'fast')
BACKENDS = ('egl', 'osmesa', 'glfw')  # the first two need no screen
NO_RENDERER = 'needs OpenGL: apt install libegl1 libgl1 (EGL, with or without a GPU) or apt install libosmesa6 (OSMesa)'


class Renderer:
    """Frames of one model through one of its cameras.

    Args:
        model: mujoco.MjModel; its off-screen buffer takes the picture's size.
        height, width: pixels.
        camera: index of one of the model's cameras; -1 is the free one.
        quality: 'full': the pixels of dm_control. 'near': a coarser shadow map; two pixels in a thousand differ at most. 'fast': neither shadows nor
            reflections nor smooth edges, for tests; a sixth of the pixels and more differ.
        threads: for a renderer in software; LP_NUM_THREADS overrules it. The first Renderer of a process decides.

    Raises:
        ImportError: this machine has no OpenGL that works without a screen."""

    def __init__(self, model: Any, height: int, width: int, camera: int = 0, quality: str = 'full', threads: int = 1) -> None:
        mujoco = import_without_display('mujoco')
        self.mujoco, self.model, self.rect = mujoco, model, mujoco.MjrRect(0, 0, width, height)
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        if quality == 'near':
            model.vis.quality.shadowsize = 512
        elif quality == 'fast':
            model.vis.quality.offsamples = 0
        gl_context(height, width, threads).make_current()
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        shadows_without_stencil(self.context)
        self.scene, self.option = mujoco.MjvScene(model, maxgeom=10_000), mujoco.MjvOption()
        self.option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False  # as dm_control has it: rays of a sensor are not part of the scene
        if quality == 'fast':
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self.scene.flags[flag] = 0
        self.camera = mujoco.MjvCamera()
        self.camera.fixedcamid = camera
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED if camera >= 0 else mujoco.mjtCamera.mjCAMERA_FREE
        if camera < 0:
            mujoco.mjv_defaultFreeCamera(model, self.camera)
        self.pixels = np.empty((height, width, 3), np.uint8)

    def terrain_changed(self) -> None:
        """A height field was drawn anew: the graphics card has a copy."""
        for field in range(self.model.nhfield):
            self.mujoco.mjr_uploadHField(self.model, self.context, field)

    def frame(self, data: Any) -> np.ndarray:
        """(H, W, 3) uint8, a view of memory that the next frame overwrites. data: mujoco.MjData."""
        m = self.mujoco
        m.mjr_setBuffer(m.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        m.mjv_updateScene(self.model, data, self.option, None, self.camera, m.mjtCatBit.mjCAT_ALL, self.scene)
        m.mjr_render(self.rect, self.scene, self.context)
        m.mjr_readPixels(self.pixels, None, self.rect, self.context)
        return self.pixels[::-1]  # OpenGL counts rows from below


_context: Any = None  # one for the process: several models may share it


def shadows_without_stencil(context: Any) -> None:
    """Gives the shadow map the 24 bits of depth that it has without the 8 of a stencil that nothing reads: clearing it is a plain fill then, where it was
    read, masked and written. The same pixels, in software 5 % sooner."""
    from OpenGL import GL
    if not context.shadowTex:
        return
    GL.glBindTexture(GL.GL_TEXTURE_2D, context.shadowTex)
    size = context.shadowSize
    GL.glTexImage2D(GL.GL_TEXTURE_2D, 0, GL.GL_DEPTH_COMPONENT24, size, size, 0, GL.GL_DEPTH_COMPONENT, GL.GL_FLOAT, None)
    GL.glBindTexture(GL.GL_TEXTURE_2D, 0)


def gl_context(height: int, width: int, threads: int = 1) -> Any:
    """The process's OpenGL context: what MUJOCO_GL says, or EGL where it works and else OSMesa. Raises: ImportError: neither does."""
    global _context
    if _context is None:
        os.environ.setdefault('LP_NUM_THREADS', str(threads if threads > 1 else 0))  # 0: in its caller's thread; by itself it takes every core
        wanted = os.environ.get('MUJOCO_GL', '').lower()
        failures = []
        if wanted not in ('', *BACKENDS):
            raise ImportError(f'MUJOCO_GL={wanted}: expected {" or ".join(BACKENDS)}, or leave it unset')
        for backend in (wanted,) if wanted else BACKENDS[:2]:
            os.environ.pop('PYOPENGL_PLATFORM', None)
            try:
                _context = importlib.import_module(f'mujoco.{backend}').GLContext(width, height)
                break
            except Exception as error:  # a library that is missing, or one of its many ways to fail
                failures.append(f'{backend}: {" ".join(str(error).split())[:120] or type(error).__name__}')
        else:
            forced = f'MUJOCO_GL={wanted} does not work here; ' if wanted else ''
            raise ImportError(f'{forced}rendering {NO_RENDERER} ({"; ".join(failures)})')
    return _context


def import_without_display(name: str) -> Any:
    """A package that brings MuJoCo, without the display that MuJoCo and dm_control would open at import where MUJOCO_GL says which: processes that are
    forked later could not use theirs, and a state task needs none."""
    chosen = os.environ.get('MUJOCO_GL')
    os.environ['MUJOCO_GL'] = 'disable'
    try:
        return importlib.import_module(name)
    finally:
        os.environ.pop('MUJOCO_GL')
        if chosen is not None:
            os.environ['MUJOCO_GL'] = chosen
